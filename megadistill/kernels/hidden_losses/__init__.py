"""Losses between the hidden states of two models, all chosen layers in one launch."""

from megadistill.kernels.hidden_losses.op import Kind, hidden_losses
from megadistill.kernels.hidden_losses.reference import hidden_losses_reference

__all__ = ["Kind", "hidden_losses", "hidden_losses_reference"]
