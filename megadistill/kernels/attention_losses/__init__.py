"""Losses between the attention scores of two models, from queries and keys, without their [B, heads, L, L] matrices."""

from megadistill.kernels.attention_losses.reference import relation_kl_reference, score_mse_reference
from megadistill.kernels.attention_losses.relation_kl import relation_kl
from megadistill.kernels.attention_losses.score_mse import score_mse

__all__ = ["relation_kl", "relation_kl_reference", "score_mse", "score_mse_reference"]
