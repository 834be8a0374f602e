"""From a block of logits to each row's losses and their gradient, in PyTorch: on any device, in any dtype.

Legend: n rows of the block, V vocabulary, K terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megadistill.kernels.head_losses.terms import Hard, HeadTerm, Soft, decode

LOWEST = -1e30
"""Stands for a logit of -inf: its probability is 0 all the same, and 0 times it is no NaN."""


def lowest(dtype: torch.dtype) -> float:
    """The same for logits of a dtype, of which fp16 does not reach so far."""
    return max(LOWEST, torch.finfo(dtype).min)


TEMPORARIES = 9
"""Values in at least fp32 that `rows` holds at once for every value of a tile."""

TopKBlock = tuple[Tensor, Tensor]


class Block(NamedTuple):
    """Some rows of logits, and where their losses and gradient go: what every row function takes. Values of a row lie
    side by side, and so does all of a bias, of the labels, and of one term's coefficients and losses."""

    z: Tensor
    """[n, V] student logits, to which `z_bias` is yet to be added."""
    coefficients: Tensor
    """[K, n] what one unit of each loss weighs in the gradient."""
    terms: str
    """K of them, as `encode` writes them."""
    losses: Tensor
    """[K, n], written: plain losses in nats."""
    gradient: Tensor
    """[n, V], written: of sum(coefficients * losses) with respect to z; z itself only if `RowFunction.in_place`."""
    u: Tensor | None = None
    """[n, V] teacher logits, to which `u_bias` is yet to be added."""
    z_bias: Tensor | None = None
    """[V]"""
    u_bias: Tensor | None = None
    """[V]"""
    labels: Tensor | None = None
    """[n] int64; a negative one counts as 0, so its coefficient must be 0."""
    top_k: TopKBlock | None = None
    """Ids [n, k] and log-probabilities [n, k] in place of u."""
    ghost: bool = False
    """See `TopK`."""
    at_once: int = 1 << 30
    """How many rows may have temporary values at the same time."""


class RowFunction(NamedTuple):
    """What turns a block of logits into losses and gradient, and the memory that it asks for beside them."""

    run: Callable[[Block], None]
    in_place: bool = True
    """The gradient may take the place of the logits that it comes from."""
    values: int = 0
    """In at least fp32, that it holds for every value of the rows that it works on at once."""
    most: int | None = None
    """Rows that it works on at once. None: as many as the workspace has room for."""
    whole: bool = False
    """It works on all rows of a block at once."""


def rows(block: Block) -> None:
    """Tile by tile, so that on a CPU what it makes of one stays in the cache; in place or not, in any dtype."""
    for start in range(0, block.z.shape[0], block.at_once):
        tile = slice(start, start + block.at_once)
        block.losses[:, tile], block.gradient[tile] = _rows(
            block.z[tile],
            None if block.u is None else block.u[tile],
            block.z_bias,
            block.u_bias,
            None if block.labels is None else block.labels[tile],
            None if block.top_k is None else (block.top_k[0][tile], block.top_k[1][tile]),
            block.coefficients[:, tile],
            block.ghost,
            decode(block.terms),
        )


def _rows(
    z: Tensor,
    u: Tensor | None,
    z_bias: Tensor | None,
    u_bias: Tensor | None,
    labels: Tensor | None,
    top_k: TopKBlock | None,
    coefficients: Tensor,
    ghost: bool,
    terms: tuple[HeadTerm, ...],
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    z = z.to(wide) if z_bias is None else z + z_bias
    if u is not None:
        u = u.to(wide) if u_bias is None else u + u_bias
    losses: list[Tensor] = []
    total: Tensor | None = None
    for number, term in enumerate(terms):
        coefficient = coefficients[number].unsqueeze(1)
        if isinstance(term, Hard):
            assert labels is not None
            loss, gradient = _hard(z, labels, coefficient, term)
        elif top_k is not None:
            loss, gradient = _top_k(z, *top_k, coefficient, term, ghost)
        else:
            assert u is not None
            loss, gradient = _soft(z, u, coefficient, term)
        losses.append(loss)
        total = gradient if total is None else total.add_(gradient)
    assert total is not None
    return torch.stack(losses), total


def _hard(z: Tensor, labels: Tensor, coefficient: Tensor, term: Hard) -> tuple[Tensor, Tensor]:
    """g = a (softmax(z) - (1 - eps) 1_y - eps / V)"""
    log_q = z.log_softmax(-1)
    label = labels.clamp(min=0).unsqueeze(1)
    loss = -log_q.gather(1, label).squeeze(1)
    if term.smoothing:
        loss = (1 - term.smoothing) * loss - term.smoothing * log_q.mean(-1)
    gradient = log_q.exp_()
    if term.smoothing:
        gradient = gradient.sub_(term.smoothing / z.shape[1])
    rest = 1 - term.smoothing
    gradient = gradient.scatter_add_(1, label, gradient.new_full((1, 1), -rest).expand_as(label))
    return loss, gradient.mul_(coefficient)


def _soft(z: Tensor, u: Tensor, coefficient: Tensor, term: Soft) -> tuple[Tensor, Tensor]:
    """g = b T (q - p), or b T q (r - sum(q r)) with r = log(q / p), or (1 - beta) log(q / m)"""
    t = term.temperature
    log_q = (z if t == 1 else z * (1 / t)).log_softmax(-1)
    log_p = (u if t == 1 else u * (1 / t)).log_softmax(-1)
    if term.divergence == "forward_kl":
        p, q = log_p.exp(), log_q.exp()
        loss = (p * log_p.sub_(log_q)).sum(-1)
        return t * t * loss, q.sub_(p).mul_(t * coefficient)
    q = log_q.exp()
    if term.divergence == "reverse_kl":
        ratio = log_q.sub_(log_p)
        loss = (q * ratio).sum(-1, keepdim=True)
        return t * t * loss.squeeze(1), ratio.sub_(loss).mul_(q).mul_(t * coefficient)
    log_m = torch.logaddexp(log_p + math.log(term.beta), log_q + math.log1p(-term.beta))
    forward = (log_p.exp() * log_p.sub_(log_m)).sum(-1)
    ratio = log_q.sub_(log_m)
    backward = (q * ratio).sum(-1, keepdim=True)
    loss = term.beta * forward + (1 - term.beta) * backward.squeeze(1)
    return t * t * loss, ratio.sub_(backward).mul_(q).mul_((1 - term.beta) * t * coefficient)


def _top_k(
    z: Tensor, ids: Tensor, log_p: Tensor, coefficient: Tensor, term: Soft, ghost: bool
) -> tuple[Tensor, Tensor]:
    """g = b T (q_v - p_v) on the kept entries and b T q_v (1 - p_rest / q_rest) elsewhere; without the ghost bucket
    b T (M q - scatter(p)), M the mass that was kept."""
    t = term.temperature
    log_q = (z if t == 1 else z * (1 / t)).log_softmax(-1)
    log_p = log_p.to(log_q.dtype)
    p, kept = log_p.exp(), log_q.gather(1, ids)
    loss = (p * (log_p.clamp(min=LOWEST) - kept)).sum(-1)
    mass = p.sum(-1, keepdim=True)
    q = log_q.exp_()
    if ghost:
        rest_p = (1 - mass).clamp(min=0)
        # summed without the kept ones: 1 - sum(kept) would lose what is left when they hold nearly everything
        rest_q = q.scatter(1, ids, 0.0).sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
        loss = loss + torch.where(rest_p > 0, rest_p * (rest_p / rest_q).log(), 0.0).squeeze(1)
        gradient = (q * (1 - rest_p / rest_q)).scatter(1, ids, q.gather(1, ids) - p)
    else:
        gradient = (q * mass).scatter_add_(1, ids, -p)
    return t * t * loss, gradient.mul_(t * coefficient)
