"""How any transformers model answers a batch with signals, and where its head can be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, AnswerKind, Attends, Attention, Batch, Dims, Head, HeadFunction, Signals
from megadistill.models.attention import attending, has_interface, noticing_direction, positions
from megadistill.models.heads import answers, as_entries, is_causal, output_layer, output_layers, read_at, transform
from megadistill.models.interventions import replacing
from megadistill.models.width import attention_widths

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
    and alike) or a task's head on such a body, as a signal source."""

    attends: Attends = "row"
    """What a position is shown of its row; a pair's texts are told apart where the model has types for them."""
    placement: Literal["replicated", "sharded", "offloaded", "own_ranks"] = "replicated"
    """Where its weights are while it trains others (see `teachers.online`)."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        self.looks_attention_up = has_interface(hf)
        # the class is swapped in place: names, tying and weights stay, so the checkpoint is still a plain HF one
        for layer in output_layers(hf):
            layer.__class__ = VocabularyHead

    @property
    def answers(self) -> AnswerKind:
        """What it can be asked for."""
        return answers(self.hf)

    @property
    def typed(self) -> bool:
        """Whether it is told which text of a pair a position belongs to; a task's rows are pairs, or one text."""
        return (self.answers != "tokens" or self.attends == "pair") and tells_texts_apart(self.hf.config)

    @property
    def num_tokens(self) -> int:
        """Token ids that it knows."""
        return _rows(self.hf.get_input_embeddings().weight)

    @property
    def dims(self) -> Dims:
        config = self.hf.config
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        queries, keys = attention_widths(config)
        return Dims(
            config.num_hidden_layers,
            config.hidden_size,
            config.num_labels if self.answers == "choice" else _rows(output_layer(self.hf).weight),
            config.num_attention_heads,
            full_attention=not (is_causal(self.hf) or slides or self.attends == "document"),
            causal=is_causal(self.hf),
            inner_head=last_norm(self.hf) is not None or _ends_with_layers(self.hf),
            queries=queries,
            keys=keys,
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
        if is_causal(self.hf):
            inputs["use_cache"] = False
        if self.typed:
            inputs["token_type_ids"] = (batch.segments - 1).clamp(min=0)
        exchange = replacing(self.hf, replaced or {}, where, known)
        with self._attending(batch, frozenset(numbers.values())) as kept, exchange:
            body = self.hf.base_model(
                input_ids=batch.ids, output_hidden_states=bool(hidden - {-1}), return_dict=True, **inputs
            )
        last = body.last_hidden_state
        states = {layer: last if layer == -1 else body.hidden_states[layer] for layer in hidden}

        def again(values: Mapping[int, Tensor], where: Tensor) -> Signals:
            lowest = min(values, default=depth)
            above = frozenset(layer for layer in hidden if layer % (depth + 1) >= lowest)
            with torch.set_grad_enabled(last.requires_grad):
                run = self.signals if self.placement == "replicated" else self
                return run(batch, above, frozenset(), values, where, states.get(lowest))

        return Signals(
            self.head_on(batch, last, states),
            states,
            {layer: kept[number] for layer, number in numbers.items()},
            again,
        )

    def head_on(self, batch: Batch, last: Tensor, states: Mapping[int, Tensor]) -> Head:
        """The head, over the last hidden state [B, L, H] of a batch and others by number."""

        def head(fn: HeadFunction[Result], rows: Tensor, layers: Sequence[int] = (-1,)) -> Result:
            rows = read_at(self.hf, rows, batch.mask, batch.choices)
            chosen = [
                last.flatten(0, 1)[rows] if layer == -1 else _finished(self.hf, states[layer].flatten(0, 1)[rows])
                for layer in layers
            ]
            together = torch.cat(chosen) if len(chosen) > 1 else chosen[0]

            def among(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Result:
                return fn(*as_entries(hidden, weight, bias, batch.choices))

            ask = among if self.answers == "choice" else fn
            return output_layer(self.hf)(transform(self.hf, together), ask)

        return head

    def _attending(self, batch: Batch, layers: frozenset[int]) -> Any:
        plain = self.hf.config._attn_implementation != "sdpa" or not self.looks_attention_up
        if self.attends != "document" and not layers and plain:
            nothing: dict[int, Attention] = {}
            return nullcontext(nothing)
        padded = len(batch.attended) < batch.mask.numel()
        return attending(self.hf, batch.segments if self.attends == "document" else None, layers, padded)

    @torch.no_grad()
    def sees_ahead(self, length: int = 8) -> bool:
        """Whether the states of early tokens change with later ones: tried out, since a class name does not tell.

        `BertLMHeadModel` reads both ways unless its config says `is_decoder`; `BertForMaskedLM` does not where it does.

        Args:
            length: tokens of the trial rows, at least 2; those of the second half are changed.
        """
        device = output_layer(self.hf).weight.device
        ids = torch.arange(2 * length, device=device).view(2, length) % self.num_tokens
        early = length // 2
        changed = ids.clone()
        changed[:, early:] = (changed[:, early:] + 1) % self.num_tokens
        training = self.training
        self.eval()
        before, after = (self._last(one)[:, :early] for one in (ids, changed))
        self.train(training)
        return not torch.equal(before, after)

    @torch.no_grad()
    def try_empty(self, attention: frozenset[int]) -> bool | None:
        """Without weights, on torch's meta device: whether a position sees those after it, by the masks that the model
        makes; None where it does not tell.

        Args:
            attention: layers whose attention will be asked for.

        Raises:
            UserError: it cannot be had, or not be confined to documents (`attends`).
        """
        trial = _trial(torch.zeros(1, 8, dtype=torch.long)).to(torch.device("meta"))
        with noticing_direction() as ahead:
            try:
                self.signals(trial, frozenset(), attention)
            except UserError:
                raise
            except Exception:  # it looks at numbers, of which there are none here
                return None
        return any(ahead) if ahead else None

    @torch.no_grad()
    def check_head(self, length: int = 8) -> None:
        """Try out that `head` gives the logits that the whole model gives: an architecture may transform its last
        states, scale or cap its logits in a way that is not known here.

        Raises:
            UserError: it does.
        """
        device = output_layer(self.hf).weight.device
        choices = 3 if self.answers == "choice" else 1
        ids = torch.arange(choices * length, device=device).view(choices, length) % self.num_tokens
        training = self.training
        self.eval()
        batch = _trial(ids, choices)
        ours = self.signals(batch, frozenset()).head(
            lambda h, w, b: torch.nn.functional.linear(h, w, b), torch.arange(length, device=device)
        )
        whole, mask = (ids, batch.mask.long()) if choices == 1 else (ids.unsqueeze(0), batch.mask.long().unsqueeze(0))
        answer = self.hf(input_ids=whole, attention_mask=mask)
        if self.answers == "span":
            theirs = torch.stack([answer.start_logits[0], answer.end_logits[0]], dim=-1)
        else:  # a class or a number is one answer a row, whatever position it is asked at
            theirs = answer.logits[0].expand_as(ours)
        self.train(training)
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
            raise UserError(
                f"{type(self.hf).__name__} computes its logits in a way that megadistill does not know",
                "its own logits differ from those of its last states and its output matrix",
                "use BERT, DistilBERT, RoBERTa, ALBERT, ModernBERT, GPT-2, Llama, Qwen or another with a plain head",
            )

    def _last(self, ids: Tensor) -> Tensor:
        return self.signals(_trial(ids), frozenset({-1})).hidden[-1]


def tells_texts_apart(config: Any) -> bool:
    """Whether models of this transformers config have types for the two texts of a pair."""
    return getattr(config, "type_vocab_size", 0) > 1


def _rows(weight: Tensor) -> int:
    """Also where the rows are elsewhere (ZeRO 3)."""
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _trial(ids: Tensor, choices: int = 1) -> Batch:
    """Whole rows of `ids` without targets."""
    whole, rows = torch.ones_like(ids), torch.arange(len(ids), device=ids.device)
    return Batch(ids, whole.bool(), whole, torch.full_like(ids, IGNORE), rows, choices=choices)


def _first_position(hf: Any) -> int:
    """RoBERTa counts positions from behind its padding id."""
    table: Any = getattr(getattr(hf.base_model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def last_norm(hf: Any) -> nn.Module | None:
    """What a body does to the output of its last layer; None: nothing, or nothing that is known here."""
    for part in (hf.base_model, getattr(hf.base_model, "decoder", None)):
        for name in ("ln_f", "norm", "final_norm", "final_layer_norm", "final_layernorm", "norm_f"):
            if isinstance(found := getattr(part, name, None), nn.Module):
                return found
    return None


def _finished(hf: Any, hidden: Tensor) -> Tensor:
    """What a model does to the output of its last layer, done to that of another: [N, H] -> [N, H].

    Raises:
        UserError: that is not known.
    """
    norm = last_norm(hf)
    if norm is None and not _ends_with_layers(hf):
        raise UserError(
            f"{type(hf).__name__} has no last norm that megadistill knows",
            "states of its inner layers cannot be given to its head",
            "leave out objectives on the answers of inner layers",
        )
    return hidden if norm is None else norm(hidden)


def _ends_with_layers(hf: Any) -> bool:
    """Whether the head reads what the last layer gives: in encoders (also where they predict the next token), whose
    layers end with a norm of their own."""
    from transformers import AutoModelForMaskedLM

    return not is_causal(hf) or type(hf.config) in AutoModelForMaskedLM._model_mapping
