"""Whether a config still describes the run that a directory holds."""

from __future__ import annotations

from typing import Any

from megadistill.core.files import sha256_json
from megadistill.core.schema import Tree, flatten

_HARMLESS = (
    "name",
    "directory",
    "log",
    "evaluate",
    "data.read",
    "checkpoint",
    "train.more_steps",
    "train.max_nonfinite_steps",
    "train.spike_sigmas",
    "train.spike_steps",
    "train.max_rollbacks",
    "train.timeout_seconds",
    "train.hang_seconds",
    "train.max_fruitless_restarts",
    "task.metrics",
)
"""Fields, or whole sections, that change nothing about what is trained."""
LAYOUT = (
    "batch.micro_size",
    "engine.zero_stage",
    "engine.offload_optimizer",
    "engine.offload_parameters",
    "engine.activation_checkpointing",
    "engine.reduce_bucket_mib",
    "engine.allgather_bucket_mib",
    "engine.overlap_communication",
    "engine.prefetch_bucket_mib",
    "engine.persistence_threshold",
)
"""How the work is split: what is trained stays the same, to the last bits of a sum and the draws of dropout."""
_LENGTH = ("train.steps", "schedule.total_steps")
"""Harmless as long as both together still say that the learning rate's decay ends at the same step."""
_MORE = "train.more_steps."
"""May be added to; what is there already has shaped the learning rate, and cannot be left out again."""
_ABSENT = "(absent)"


def compare(here: Tree, there: Tree) -> tuple[list[str], list[str]]:
    """The fields in which two resolved configs differ, as readable lines: (harmless, consequential)."""
    same_length = _total_steps(here) == _total_steps(there)
    mine, theirs = _leaves(here), _leaves(there)
    harmless: list[str] = []
    consequential: list[str] = []
    for key in {**mine, **theirs}:
        a, b = mine.get(key, _ABSENT), theirs.get(key, _ABSENT)
        if a != b:
            settled = key.startswith(_MORE) and b != _ABSENT
            lines = harmless if _is_harmless(key, same_length) and not settled else consequential
            lines.append(f"{key}: {a} here / {b} in the run")
    return harmless, consequential


def fingerprint(config: Tree) -> str:
    """A hash that two configs share exactly when `compare` finds nothing consequential but other `more_steps`."""
    fields: dict[str, Any] = {key: value for key, value in flatten(config) if not _is_harmless(key, True)}
    return sha256_json({**fields, "total_steps": _total_steps(config)})


def _is_harmless(key: str, same_length: bool) -> bool:
    if key in _LENGTH:
        return same_length
    return key in LAYOUT or any(key == name or key.startswith(f"{name}.") for name in _HARMLESS)


def _leaves(config: Tree) -> Tree:
    """By dotted key; an empty list has none."""
    return {key: value for key, value in flatten(config) if value != []}


def _total_steps(config: Tree) -> int:
    return config["schedule"]["total_steps"] or config["train"]["steps"]
