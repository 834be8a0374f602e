"""How any transformers language model answers a batch with signals, and where its vocabulary head can be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Attention, Batch, Dims, HeadFunction, Signals
from megadistill.models.attention import attending, positions
from megadistill.models.interventions import replacing

Result = TypeVar("Result")


class VocabularyHead(nn.Linear):
    """The output projection, which can also run a function where its weight is readable.

    Under ZeRO-3 a weight is whole only inside the forward of the module that owns it; calling the module with a
    function runs it there.
    """

    def forward(self, hidden: Tensor, fn: HeadFunction[Result] | None = None) -> Any:
        """hidden [N, H] -> logits [N, V], or `fn(hidden, weight, bias)`."""
        if fn is None:
            return super().forward(hidden)
        return fn(hidden, self.weight, self.bias)


class LanguageModel(nn.Module):
    """A transformers model with a vocabulary head (BERT, DistilBERT, RoBERTa, ALBERT, ModernBERT, GPT-2, Llama, Qwen
    and alike), as a signal source."""

    attends: Literal["row", "document"] = "row"
    """What a position may see: its whole row, or (and then positions restart) its own document only."""
    placement: Literal["replicated", "sharded", "offloaded"] = "replicated"
    """Where its weights are while it trains others (see `teachers.online`)."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        decoder = hf.get_output_embeddings()
        if not isinstance(decoder, nn.Linear):
            raise UserError(
                f"{type(hf).__name__} has no linear vocabulary head",
                f"its output embeddings are {type(decoder).__name__}",
                "use a masked or causal language model",
            )
        # the class is swapped in place: names, tying and weights stay, so the checkpoint is still a plain HF one
        decoder.__class__ = VocabularyHead

    @property
    def dims(self) -> Dims:
        config = self.hf.config
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        return Dims(
            config.num_hidden_layers,
            config.hidden_size,
            _rows(self.hf.get_output_embeddings().weight),
            config.num_attention_heads,
            full_attention=not (_is_causal(self.hf) or slides or self.attends == "document"),
            causal=_is_causal(self.hf),
        )

    def forward(self, *arguments: Any) -> Signals:
        """`signals`, as a call: a model that is spread over ranks wants to know where a pass begins and ends."""
        return self.signals(*arguments)

    def signals(
        self,
        batch: Batch,
        hidden: frozenset[int],
        attention: frozenset[int] = frozenset(),
        replaced: Mapping[int, Tensor] | None = None,
        where: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Signals:
        """Run the body on a batch; the head waits until an objective asks.

        Args:
            batch: the micro-batch.
            hidden: hidden states to keep, by number (see `Needs`).
            attention: layers whose attention to keep, by number (see `Needs`); the model then attends as `sdpa`.
            replaced: hidden states to put in place of a layer's output, by its number from 1: [B, L, H].
            where: [B, L] bool, at which positions.
            known: [B, L, H] what the lowest of those layers gives of itself, which need not be computed then; nor may
                `hidden` ask for states below it.
        """
        depth = self.hf.config.num_hidden_layers
        numbers = {layer: layer if layer > 0 else depth + 1 + layer for layer in attention}
        inputs: dict[str, Any] = {"attention_mask": batch.mask.long()}
        if self.attends == "document":
            first = _first_position(self.hf)
            inputs = {"attention_mask": None, "position_ids": positions(batch.segments) + first}
        if _is_causal(self.hf):
            inputs["use_cache"] = False
        exchange = replacing(self.hf, replaced or {}, where, known)
        with self._attending(batch, frozenset(numbers.values())) as kept, exchange:
            body = self.hf.base_model(
                input_ids=batch.ids, output_hidden_states=bool(hidden - {-1}), return_dict=True, **inputs
            )
        last = body.last_hidden_state
        states = {layer: last if layer == -1 else body.hidden_states[layer] for layer in hidden}

        def head(fn: HeadFunction[Result], rows: Tensor, layers: Sequence[int] = (-1,)) -> Result:
            chosen = [
                last.flatten(0, 1)[rows] if layer == -1 else _finished(self.hf, states[layer].flatten(0, 1)[rows])
                for layer in layers
            ]
            together = torch.cat(chosen) if len(chosen) > 1 else chosen[0]
            return self.hf.get_output_embeddings()(_transform(self.hf, together), fn)

        def again(values: Mapping[int, Tensor], where: Tensor) -> Signals:
            lowest = min(values, default=depth)
            above = frozenset(layer for layer in hidden if layer % (depth + 1) >= lowest)
            with torch.set_grad_enabled(last.requires_grad):
                run = self.signals if self.placement == "replicated" else self
                return run(batch, above, frozenset(), values, where, states.get(lowest))

        return Signals(
            head,
            states,
            {layer: kept[number] for layer, number in numbers.items()},
            again,
        )

    def _attending(self, batch: Batch, layers: frozenset[int]) -> Any:
        if self.attends == "row" and not layers:
            nothing: dict[int, Attention] = {}
            return nullcontext(nothing)
        return attending(self.hf, batch.segments if self.attends == "document" else None, layers)

    @torch.no_grad()
    def sees_ahead(self, length: int = 8) -> bool:
        """Whether the states of early tokens change with later ones: tried out, since a class name does not tell.

        `BertLMHeadModel` reads both ways unless its config says `is_decoder`; `BertForMaskedLM` does not where it does.

        Args:
            length: tokens of the trial rows, at least 2; those of the second half are changed.
        """
        device = self.hf.get_output_embeddings().weight.device
        ids = torch.arange(2 * length, device=device).view(2, length) % self.dims.vocabulary
        early = length // 2
        changed = ids.clone()
        changed[:, early:] = (changed[:, early:] + 1) % self.dims.vocabulary
        training = self.training
        self.eval()
        before, after = (self._last(one)[:, :early] for one in (ids, changed))
        self.train(training)
        return not torch.equal(before, after)

    @torch.no_grad()
    def check_head(self, length: int = 8) -> None:
        """Try out that `head` gives the logits that the whole model gives: an architecture may transform its last
        states, scale or cap its logits in a way that is not known here.

        Raises:
            UserError: it does.
        """
        device = self.hf.get_output_embeddings().weight.device
        ids = torch.arange(length, device=device).unsqueeze(0) % self.dims.vocabulary
        training = self.training
        self.eval()
        batch = _trial(ids)
        ours = self.signals(batch, frozenset()).head(
            lambda h, w, b: torch.nn.functional.linear(h, w, b), torch.arange(length, device=device)
        )
        theirs = self.hf(input_ids=ids, attention_mask=batch.mask.long()).logits[0]
        self.train(training)
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
            raise UserError(
                f"{type(self.hf).__name__} computes its logits in a way that megadistill does not know",
                "its own logits differ from those of its last states and its output matrix",
                "use BERT, DistilBERT, RoBERTa, ALBERT, ModernBERT, GPT-2, Llama, Qwen or another with a plain head",
            )

    def _last(self, ids: Tensor) -> Tensor:
        return self.signals(_trial(ids), frozenset({-1})).hidden[-1]


def _rows(weight: Tensor) -> int:
    """Also where the rows are elsewhere (ZeRO 3)."""
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _trial(ids: Tensor) -> Batch:
    """Whole rows of `ids` without targets."""
    whole = torch.ones_like(ids)
    return Batch(ids, whole.bool(), whole, torch.full_like(ids, IGNORE), torch.arange(len(ids), device=ids.device))


def _is_causal(hf: Any) -> bool:
    return type(hf).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _first_position(hf: Any) -> int:
    """RoBERTa counts positions from behind its padding id."""
    table: Any = getattr(getattr(hf.base_model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _finished(hf: Any, hidden: Tensor) -> Tensor:
    """What a model does to the output of its last layer, done to that of another: [N, H] -> [N, H]."""
    for name in ("ln_f", "norm", "final_norm"):
        if isinstance(getattr(hf.base_model, name, None), nn.Module):
            return getattr(hf.base_model, name)(hidden)
    return hidden


def _transform(hf: Any, hidden: Tensor) -> Tensor:
    """What lies between the last hidden state and the output projection: [N, H] -> [N, H]."""
    kind = hf.config.model_type
    if kind == "bert" and hasattr(hf, "cls"):
        return hf.cls.predictions.transform(hidden)
    if kind == "distilbert":
        return hf.vocab_layer_norm(hf.activation(hf.vocab_transform(hidden)))
    if kind in ("roberta", "xlm-roberta") and hasattr(hf.lm_head, "dense"):
        return hf.lm_head.layer_norm(torch.nn.functional.gelu(hf.lm_head.dense(hidden)))
    if kind == "albert":
        head = hf.predictions
        return head.LayerNorm(head.activation(head.dense(hidden)))
    if kind == "modernbert":
        return hf.head(hidden)
    return hidden
