"""The step as published distillation code writes it (Sanh et al. 2019), and the models and batches that it and ours are
measured on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from megadistill.core.types import IGNORE, Batch
from megadistill.engine.optimizer import OptimizerConfig, build_optimizer

T, SOFT, HARD, COSINE = 2.0, 5.0, 2.0, 1.0
CLIP = 5.0
PRESETS = {
    "distilbert": {"vocabulary": 30522, "hidden": 768, "heads": 12, "teacher_layers": 12, "layers": 6},
    "distilgpt2": {"vocabulary": 50257, "hidden": 768, "heads": 12, "teacher_layers": 12, "layers": 6, "causal": True},
    "small": {"vocabulary": 30522, "hidden": 256, "heads": 4, "teacher_layers": 4, "layers": 2},
}
"""Sizes of presets with these three losses; `small` is distilbert's for a quick look."""


def models(size: dict[str, int]) -> tuple[nn.Module, nn.Module]:
    """(teacher, student) in Hugging Face's classes, random, the same at every call."""
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DistilBertConfig,
        DistilBertForMaskedLM,
        GPT2Config,
        GPT2LMHeadModel,
    )

    torch.manual_seed(0)
    h, v, heads = size["hidden"], size["vocabulary"], size["heads"]
    if "causal" in size:
        same = {"vocab_size": v, "n_embd": h, "n_head": heads, "use_cache": False}
        deep, shallow = (GPT2Config(n_layer=size[depth], **same) for depth in ("teacher_layers", "layers"))
        return GPT2LMHeadModel(deep).eval().requires_grad_(False), GPT2LMHeadModel(shallow).train()
    teacher = BertConfig(
        vocab_size=v,
        hidden_size=h,
        num_hidden_layers=size["teacher_layers"],
        num_attention_heads=heads,
        intermediate_size=4 * h,
        initializer_range=0.04,
    )
    student = DistilBertConfig(
        vocab_size=v, dim=h, n_layers=size["layers"], n_heads=heads, hidden_dim=4 * h, initializer_range=0.04
    )
    return BertForMaskedLM(teacher).eval().requires_grad_(False), DistilBertForMaskedLM(student).train()


def batch(rows: int, length: int, size: dict[str, int], seed: int) -> Batch:
    """Whole rows, 15 % of the positions masked, or, causal, the next token at all but the last."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, size["vocabulary"], (rows, length), generator=draw)
    labels = torch.where(torch.rand(ids.shape, generator=draw) < 0.15, ids, IGNORE)
    if "causal" in size:
        labels = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORE)], dim=1)
    whole = torch.ones_like(ids)
    return Batch(ids, whole.bool(), whole, labels, torch.arange(rows))


def textbook_loss(student: nn.Module, teacher: nn.Module, given: Batch) -> tuple[Tensor, list[Tensor]]:
    """All logits of both models, then one loss after the other."""
    with torch.no_grad():
        theirs = teacher(input_ids=given.ids, attention_mask=given.mask.long(), output_hidden_states=True)
    ours = student(input_ids=given.ids, attention_mask=given.mask.long(), output_hidden_states=True)
    chosen = given.mask.unsqueeze(-1)

    def flat(values: Tensor) -> Tensor:
        return values.masked_select(chosen.expand_as(values)).view(-1, values.shape[-1])

    z, u = flat(ours.logits), flat(theirs.logits)
    soft = functional.kl_div((z / T).log_softmax(-1), (u / T).softmax(-1), reduction="batchmean") * T * T
    hard = functional.cross_entropy(ours.logits.flatten(0, 1), given.labels.flatten(), ignore_index=IGNORE)
    states = flat(ours.hidden_states[-1]), flat(theirs.hidden_states[-1])
    cosine = functional.cosine_embedding_loss(*states, states[0].new_ones(len(states[0])))
    return SOFT * soft + HARD * hard + COSINE * cosine, [soft, hard, cosine]


class Textbook:
    """(a) and (b)."""

    def __init__(self, size: dict[str, int], device: torch.device, compiled: bool) -> None:
        self.teacher, self.student = (model.to(device) for model in models(size))
        self.optimizer = build_optimizer(OptimizerConfig(), self.student)
        self.device = device
        self.loss = torch.compile(textbook_loss) if compiled else textbook_loss

    def step(self, given: Batch) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        moved = given.to(self.device)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            loss, parts = self.loss(self.student, self.teacher, moved)
        told = loss.item()
        for part in parts:
            part.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), CLIP)
        self.optimizer.step()
        return told

    def value(self, given: Batch) -> float:
        """The loss without dropout, nothing learnt."""
        self.student.eval()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            found = float(textbook_loss(self.student, self.teacher, given.to(self.device))[0])
        self.student.train()
        return found
