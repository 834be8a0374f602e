"""What a run has learnt so far: the checkpoint that evaluation and export read."""

from __future__ import annotations

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.engine import checkpoint
from megadistill.run.directory import RunDirectory


def trained(directory: RunDirectory) -> checkpoint.Found:
    """The newest checkpoint of a run; damaged ones that were passed over are logged.

    Raises:
        UserError: it has none yet, or none that verifies.
    """
    found = checkpoint.newest(directory.checkpoints, directory.history(), log.get().warning)
    if found is None:
        raise UserError(f"{directory.path} has no checkpoint yet", fix="train it first")
    return found
