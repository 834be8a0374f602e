"""A run leaves its allocation before Slurm ends it."""

import time

from megadistill.train.deadline import MARGIN_SECONDS, Deadline, slurm_end


def test_it_stops_while_two_steps_and_saves_still_fit():
    ends = time.time() + MARGIN_SECONDS + 100
    assert Deadline(ends).reason(longest_step=10, longest_save=20) == ""
    assert "the allocation ends at" in Deadline(ends).reason(longest_step=10, longest_save=50)
    assert Deadline(None).reason(1e9, 1e9) == ""


def test_slurm_says_when_its_job_ends(tmp_path):
    assert slurm_end({}) is None
    assert slurm_end({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1800000000"}) == 1_800_000_000
    squeue = tmp_path / "squeue"
    squeue.write_text('#!/bin/sh\n[ "$3" = 7 ] && echo 2027-01-15T08:00:00 || echo N/A\n')
    squeue.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TZ": "UTC"}
    expected = time.mktime((2027, 1, 15, 8, 0, 0, 0, 0, -1))
    assert slurm_end({**environ, "SLURM_JOB_ID": "7"}) == expected
    assert slurm_end({**environ, "SLURM_JOB_ID": "8"}) is None
    assert slurm_end({"SLURM_JOB_ID": "7", "PATH": str(tmp_path / "nothing")}) is None
