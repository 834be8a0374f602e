"""A student that was trained before, as it was in the end: born-again networks (Furlanello et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from megadistill.core.types import Needs
from megadistill.teachers.base import Teacher
from megadistill.teachers.ensemble import EnsembleTeacher
from megadistill.teachers.online import OnlineTeacher


class GenerationsTeacher(Teacher):
    """Runs named `<run>-0`, `<run>-1`, ... of equal students: the first learns without a teacher, and each later one,
    started anew, from the one before it, or from all before it at once (Furlanello et al. 2018, arXiv:1805.04770,
    sections 3.1 and 3.2).

    Each is an ordinary run, to be started when the one before it is done: a teacher that still learns is refused.
    """

    kind: Literal["generations"]
    run: str
    """The runs' directories without their numbers: runs/born_again for runs/born_again-0 and so on."""
    generation: int = Field(ge=1)
    """Which of them this run is; the first, 0, has no teacher."""
    learns_from: Literal["last", "all"] = "last"
    """all: the geometric mean of the distributions of all generations before it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """See the teacher `online`."""

    def paths(self) -> list[str]:
        return self.stands_for(()).paths()

    def cannot(self, needs: Needs) -> str:
        return self.stands_for(()).cannot(needs)

    def stands_for(self, rows: Sequence[str]) -> Teacher:
        first = 0 if self.learns_from == "all" else self.generation - 1
        members = [
            OnlineTeacher(kind="online", path=f"{self.run}-{number}@end", dtype=self.dtype, guard=self.guard)
            for number in range(first, self.generation)
        ]
        if len(members) == 1:
            return members[0]
        return EnsembleTeacher(kind="ensemble", members=members, guard=self.guard)
