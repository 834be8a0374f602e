"""Cross-entropy of a vocabulary head against labels, from hidden states, without the logits."""

from megadistill.kernels.linear_ce.chunked import linear_ce
from megadistill.kernels.linear_ce.reference import linear_ce_reference

__all__ = ["linear_ce", "linear_ce_reference"]
