"""The model as inference calls it, without megadistill: tensors in, one tensor out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from megadistill.core.types import Batch
from megadistill.models.images import ImageModel
from megadistill.models.signals import LanguageModel


def plain(model: LanguageModel) -> nn.Module:
    """Called with what `inputs` makes, in its order."""
    return _PlainImage(model) if isinstance(model, ImageModel) else _Plain(model)


def inputs(model: LanguageModel, batch: Batch) -> dict[str, Tensor]:
    """By the names of the plain model's arguments, in their order."""
    if isinstance(model, ImageModel):
        assert model.view is not None
        assert batch.pixels is not None
        return {"pixel_values": model.view(batch.pixels)}
    segments = (batch.segments - 1).clamp(min=0)
    return {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "token_type_ids": segments}


class _Plain(nn.Module):
    """[B, L] ids and masks -> [B, C], or [B, L, V], of spans [B, L, 2]; of choices [B, 1], the score of each text."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.hf, self.span, self.choice = model.hf, model.answers == "span", model.answers == "choice"
        self.typed = model.typed

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.typed:
            given["token_type_ids"] = token_type_ids
        if self.choice:
            given = {name: value.unsqueeze(1) for name, value in given.items()}
        answer = self.hf(**given)
        return torch.stack([answer.start_logits, answer.end_logits], -1) if self.span else answer.logits


class _PlainImage(nn.Module):
    """Likewise of an image model, whose images went through its processor: [B, 3, S, S] -> [B, C]."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.hf = model.hf

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.hf(pixel_values=pixel_values).logits
        return logits
