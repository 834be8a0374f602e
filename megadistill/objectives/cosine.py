"""Point the student's last hidden states where the teacher's point (DistilBERT, Sanh et al. 2019, section 2)."""

from __future__ import annotations

from typing import Literal

import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Batch, Dims, Needs, Signals, Term
from megadistill.objectives.base import Objective

LAST = -1


class Cosine(Objective):
    """1 - cos(student, teacher) of the last hidden states, mean over attended positions of the global batch."""

    kind: Literal["cosine"]

    def needs(self) -> Needs:
        return Needs(student_hidden=frozenset({LAST}), teacher_hidden=frozenset({LAST}), teacher=True)

    def build(self, student: Dims, teacher: Dims | None) -> _CosineLoss:
        if teacher is not None and teacher.hidden != student.hidden:
            raise UserError(
                f"cosine compares hidden states of one width; the teacher has {teacher.hidden}, "
                f"the student {student.hidden}",
                "objectives: cosine",
                "give the student the teacher's width, or leave the objective out",
            )
        return _CosineLoss()


class _CosineLoss:
    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        ours, theirs = student.hidden[LAST].float(), teacher.hidden[LAST].float()
        # a zero row has cosine 0 (loss 1), never NaN: cosine_similarity clamps the norms
        distance = 1 - torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)
        return Term((distance * batch.mask).sum(), "tokens")
