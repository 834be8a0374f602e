"""When the allocation that this run lives in ends, and whether one more step still fits before."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime

MARGIN_SECONDS = 60.0
"""For the exit itself, and for clocks that differ."""


class Deadline:
    """Stops a run early enough to save, wherever the scheduler's own warning does not come or comes late."""

    def __init__(self, end: float | None) -> None:
        """
        Args:
            end: seconds since 1970; None: there is no end.
        """
        self.end = end

    def reason(self, longest_step: float, longest_save: float) -> str:
        """Why this run must stop now; empty while there is time for two more steps and saves (seconds)."""
        if self.end is None or self.end - time.time() > 2 * (longest_step + longest_save) + MARGIN_SECONDS:
            return ""
        return f"the allocation ends at {datetime.fromtimestamp(self.end).isoformat(timespec='seconds')}"


def slurm_end(environ: Mapping[str, str] | None = None) -> float | None:
    """When the Slurm job around this process ends, counted from the allocation's start; None outside of one, or where
    it has no time limit. Asks `squeue` where Slurm (before 23.02) does not tell in the environment."""
    env = os.environ if environ is None else environ
    if "SLURM_JOB_ID" not in env:
        return None
    if env.get("SLURM_JOB_END_TIME", "").isdigit():
        return float(env["SLURM_JOB_END_TIME"])
    command = ["squeue", "--noheader", "--job", env["SLURM_JOB_ID"], "--format", "%e"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=dict(env)).stdout
        return datetime.fromisoformat(told.strip()).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError):  # no squeue in a container, or "N/A": no limit
        return None
