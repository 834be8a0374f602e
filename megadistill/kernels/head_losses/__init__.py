"""Losses between the vocabulary heads of student and teacher, from hidden states, without the logits of either."""

from megadistill.kernels.head_losses.blocks import workspace_bytes
from megadistill.kernels.head_losses.op import head_losses, head_row_losses, linear_ce, linear_soft_ce
from megadistill.kernels.head_losses.reference import reference_losses
from megadistill.kernels.head_losses.sharded import sharded_head_losses
from megadistill.kernels.head_losses.terms import Divergence, Hard, HeadTerm, Projection, Soft, TopK

__all__ = [
    "Divergence",
    "Hard",
    "HeadTerm",
    "Projection",
    "Soft",
    "TopK",
    "head_losses",
    "head_row_losses",
    "linear_ce",
    "linear_soft_ce",
    "reference_losses",
    "sharded_head_losses",
    "workspace_bytes",
]
