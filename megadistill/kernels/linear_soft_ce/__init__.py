"""Softened cross-entropy between two vocabulary heads, from hidden states, without the logits of either.

Hinton, Vinyals & Dean 2015, section 2: T^2 * KL(softmax(t / T) || softmax(s / T)). The T^2 keeps the gradient's size
when T changes.
"""

from megadistill.kernels.linear_soft_ce.chunked import linear_soft_ce
from megadistill.kernels.linear_soft_ce.reference import linear_soft_ce_reference

__all__ = ["linear_soft_ce", "linear_soft_ce_reference"]
