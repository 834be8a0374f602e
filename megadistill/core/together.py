"""How a failure on one rank becomes the same failure on every rank, instead of a hang."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

from megadistill.core.dist import gather_objects
from megadistill.core.errors import UserError

Result = TypeVar("Result")


class RankFailed(RuntimeError):
    """Something went wrong on at least one rank; on that rank it is the `__cause__`."""


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def together(what: str, action: Callable[[], Result]) -> list[Result]:
    """Run `action` on every rank and return all results, in rank order, on every rank.

    Args:
        what: for the message, as in "hash the checkpoint's files".
        action: returns something picklable; uses no collectives that the other ranks would wait in.

    Raises:
        UserError: the one that the lowest failing rank raised (its class too, so exit codes agree).
        RankFailed: when that rank failed in another way.
    """
    result: Result | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    # other exceptions travel as text: not every one can be pickled
    told = error if error is None or isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    outcomes: list[tuple[Result | None, UserError | str | None]] = gather_objects((result, told))
    failures = {rank: failure for rank, (_, failure) in enumerate(outcomes) if failure is not None}
    if not failures:
        return [cast(Result, value) for value, _ in outcomes]
    first = next(iter(failures.values()))
    if isinstance(first, UserError):
        raise first from (None if first is error else error)
    told_by = "; ".join(f"rank {rank}: {failure}" for rank, failure in failures.items())
    raise RankFailed(f"could not {what}: {told_by}") from error


def on_main(what: str, action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 only; its result, or its failure, reaches every rank (see `together`)."""
    rank, _ = rank_and_size()
    return together(what, action if rank == 0 else lambda: cast(Result, None))[0]
