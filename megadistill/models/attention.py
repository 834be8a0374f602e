"""How a model's attention is confined to documents, and how an objective gets to see what a layer attends with.

Both stand on one seam of transformers: a model looks its attention and its mask up by a name in its config. While
`attending` is open the name leads here: masks are intersected with the documents, queries, keys and values are noted,
and the attention itself runs as PyTorch's `scaled_dot_product_attention`. Hence every family that follows the
attention interface works (BERT, DistilBERT, RoBERTa, ALBERT, ModernBERT, GPT-2, Llama, Qwen), sliding windows and
grouped heads included, and no [heads, L, L] score is stored for who only wants the keys.

Where nothing is to be noted the name is another one, whose attention is torch's alone: a layer can be compiled then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.types import Attention

NAMES = ("megadistill", "megadistill_noted")
"""Of the attention in transformers' registries: with masks of our own; and with notes besides."""


@dataclass
class _Pass:
    """One forward pass of one model."""

    documents: Tensor | None
    wanted: frozenset[int]
    padded: bool
    num_calls: int = 0
    """Of attention, where anything is wanted."""
    masked: bool = False
    found: dict[int, Attention] = field(default_factory=dict)


_PASS: ContextVar[_Pass | None] = ContextVar("attention", default=None)
_MASKS: ContextVar[list[Any] | None] = ContextVar("masks", default=None)


@contextmanager
def noticing_direction() -> Iterator[list[bool]]:
    """Passes inside that attend through `attending` add to what is yielded, for each mask that their model makes,
    whether a position sees the next one by it."""
    masks: list[Any] = []
    found: list[bool] = []
    token = _MASKS.set(masks)
    try:
        yield found
    finally:
        _MASKS.reset(token)
    none, first, second = torch.tensor(0), torch.tensor(0), torch.tensor(1)
    found += [bool(mask(none, none, first, second)) for mask in masks]


@contextmanager
def attending(
    hf: Any, documents: Tensor | None, wanted: frozenset[int], padded: bool
) -> Iterator[dict[int, Attention]]:
    """The forward pass inside attends within documents, and fills what is yielded with `wanted` layers.

    Args:
        hf: a transformers model; restored when the pass is over.
        documents: [B, L] document numbers, each position sees its own document only; None: no such limit.
        wanted: layers by number, from 1.
        padded: whether any position is not attended. transformers would look at the mask, and the host would wait for
            the GPU to tell.

    Raises:
        UserError: the model does not look its attention up where others do.
    """
    if not has_interface(hf):
        raise hidden(hf, f"{type(hf).__module__} knows none", bool(wanted), documents is not None)
    _register()
    one = _Pass(documents, wanted, padded)
    before, token = hf.config._attn_implementation, _PASS.set(one)
    hf.config._attn_implementation = NAMES[bool(wanted)]
    try:
        yield one.found
    finally:
        hf.config._attn_implementation = before
        _PASS.reset(token)
    unconfined = documents is not None and not one.masked
    if wanted - one.found.keys() or unconfined:
        why = f"it made {'a' if one.masked else 'no'} mask and, if asked, {one.num_calls} attention call(s) through it"
        raise hidden(hf, why, bool(wanted - one.found.keys()), unconfined)


def has_interface(hf: Any) -> bool:
    """Whether a model's file looks attention up. One that does not may still make its mask in the common way, which
    here is one of booleans, and add it to its scores: nothing would be masked."""
    return hasattr(sys.modules[type(hf).__module__], "ALL_ATTENTION_FUNCTIONS")


def hidden(hf: Any, why: str, layers: bool, documents: bool) -> UserError:
    """What is said of a model whose attention cannot be had.

    Args:
        layers: objectives ask for it.
        documents: it shall be confined to them.
    """
    states = "use hidden_mse instead (states, which every model shows; a learnt projection where widths differ)"
    rows = "set data.attention: row (documents of a row then see one another)"
    fix = " and ".join([states] * layers + [rows] * documents)
    return UserError(
        f"{type(hf).__name__} does not use transformers' attention interface",
        why,
        f"{fix}, or take an architecture such as bert, roberta, modernbert, gpt2 or llama",
    )


def positions(documents: Tensor) -> Tensor:
    """[B, L] int64, counted from 0 in each document of a row; `documents` [B, L] holds runs of equal numbers."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.zeros_like(index)
    starts[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], index[:, 1:], 0)
    return index - starts.cummax(1).values


@cache
def _register() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import (
        ALL_MASK_ATTENTION_FUNCTIONS,
        and_masks,
        causal_mask_function,
        packed_sequence_mask_function,
        sdpa_mask,
    )
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(*args: Any, **given: Any) -> Any:
        if given.get("softcap") is not None:
            raise UserError(
                f"{type(args[0]).__name__} caps its attention scores",
                "no fused attention does",
                "set attn_logit_softcapping: null in its config (a trained one needs it), or take another architecture",
            )
        return sdpa_attention_forward(*args, **given)

    def attend_and_note(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> Any:
        one = _PASS.get()
        assert one is not None, "the name stands in a config during a pass only"
        one.num_calls += 1
        if one.num_calls in one.wanted:
            causal = given.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            visible = _everything(query, causal) if attention_mask is None else attention_mask
            scale = given.get("scaling")
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            one.found[one.num_calls] = Attention(query, key, value, scale, visible)
        return attend(module, query, key, value, attention_mask, **given)

    def mask(*args: Any, mask_function: Any = causal_mask_function, **given: Any) -> Any:
        one = _PASS.get()
        if (masks := _MASKS.get()) is not None:
            masks.append(mask_function)
        if one is not None and one.documents is not None:
            one.masked = True
            mask_function = and_masks(mask_function, packed_sequence_mask_function(one.documents))
        if one is not None and (one.documents is not None or one.padded):
            given |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        elif one is not None:
            given["attention_mask"] = None
        return sdpa_mask(*args, mask_function=mask_function, **given)

    for name, function in zip(NAMES, (attend, attend_and_note), strict=True):
        ALL_ATTENTION_FUNCTIONS.register(name, function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)


def _everything(query: Tensor, causal: bool) -> Tensor:
    """[1, 1, L, L] bool: what a mask of None means."""
    length = query.shape[2]
    visible = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return (visible.tril() if causal else visible)[None, None]
