"""What the attempts before this one have left, and whether it may go on from there."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

from megadistill.core import log
from megadistill.core.dist import gather_objects
from megadistill.core.errors import UserError
from megadistill.engine import checkpoint
from megadistill.run.config import RunConfig
from megadistill.run.directory import RunDirectory
from megadistill.run.restarts import refuse_fruitless, refuse_live, restarted_by_scheduler
from megadistill.train.health import undone_from
from megadistill.train.watchdog import hung_file, hung_ranks, last_heard


def refuse_to_continue(
    directory: RunDirectory, steps: int, layout: Mapping[str, Any], teacher: Mapping[str, Any] | None
) -> None:
    """Before the run is claimed, for one process: a start that cannot continue it must change nothing, nor fence off
    one that can.

    Args:
        steps: where the run is to end.
        layout: what the checkpoint of this attempt will call so.
        teacher: its identity.

    Raises:
        UserError: the run lives, or is longer than it shall be, or its newest checkpoint is of another layout or
            teacher.
    """
    refuse_live(directory.owner())
    _refuse_fewer_steps(directory, steps)
    facts = _newest_facts(directory)
    if facts is not None:
        _refuse_other_layout(facts["layout"], layout)
        _refuse_other_teacher(facts["teacher"], teacher)


def refuse_different(teacher: Mapping[str, Any] | None) -> None:
    """Called on every rank.

    Raises:
        UserError: not all have the same teacher: a hub's branch has moved meanwhile, or nodes' folders differ.
    """
    every = gather_objects((socket.gethostname(), teacher))
    for rank, (host, other) in enumerate(every):
        if other != every[0][1]:
            raise UserError(
                f"rank {rank} on {host} has another teacher than rank 0 on {every[0][0]}",
                f"{other} there / {every[0][1]} here",
                "give all nodes the same folder, or name a commit of the hub (teacher.revision)",
            )


def look_back(directory: RunDirectory, attempt: int, config: RunConfig) -> None:
    """After the claim, for one process: say which attempt hung.

    Raises:
        NoProgress: this restart would be one too many (`run/restarts.py`).
    """
    hung = hung_ranks(directory.path, attempt - 1)
    if hung:
        stacks = hung_file(directory.path, attempt - 1, hung[0])
        heard = last_heard(directory.path)
        where = "; ".join(f"rank {rank}: {heard[rank]}" for rank in sorted(heard)[:16])
        log.get().info(f"attempt {attempt - 1} hung on rank(s) {', '.join(map(str, hung))}; stacks in {stacks}")
        log.get().info(f"last heard of: {where}")
        directory.journal("hang", hung_attempt=attempt - 1, ranks=hung, stacks=stacks.name, heard=heard)
    if restarted_by_scheduler():
        refuse_fruitless(directory.events(), attempt, config.train.max_fruitless_restarts)


def _newest_facts(directory: RunDirectory) -> dict[str, Any] | None:
    """What the newest checkpoint says it was written with; not verified yet."""
    for _, _, path in checkpoint.committed(directory.checkpoints):
        try:
            return json.loads((path / checkpoint.MANIFEST).read_text(encoding="utf-8"))["facts"]
        except (OSError, ValueError, KeyError):
            continue
    return None


def _refuse_fewer_steps(directory: RunDirectory, steps: int) -> None:
    history, undone = directory.history(), undone_from(directory.events())
    for step, attempt, path in checkpoint.committed(directory.checkpoints):
        if steps < step < undone and checkpoint.on_line(history, step, attempt):
            raise UserError(
                f"the run is at step {step} already, and it is to end at step {steps}",
                f"{path}",
                "give the train.steps and train.more_steps that it had, or this run another `name`",
            )


def _refuse_other_layout(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if there["zero_stage"] != here["zero_stage"] and 0 in (there["zero_stage"], here["zero_stage"]):
        raise UserError(
            "a checkpoint of ZeRO stage 0 cannot be continued at another stage, nor one of another at stage 0",
            f"{there} in the checkpoint / {here} here",
            f"set engine.zero_stage to {there['zero_stage']}",
        )
    if there != here and here["zero_stage"] != 0 and "optimizer" in here:
        raise UserError(
            f"a checkpoint of {here['optimizer']} can be continued only as it was written",
            f"{there} in the checkpoint / {here} here; only AdamW's state can be dealt out anew",
            f"start {there['ranks']} rank(s) with engine.zero_stage {there['zero_stage']}, or over with --fresh",
        )


def _refuse_other_teacher(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> None:
    if theirs != ours and theirs and ours and theirs.get("sha256") != ours.get("sha256"):
        raise UserError(
            "the teacher is not the one this run has learnt from so far",
            f"{theirs} in the checkpoint / {ours} here",
            "bring back the old teacher, or give this run another `name`",
        )
