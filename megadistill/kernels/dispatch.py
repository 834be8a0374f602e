"""Which implementation every op runs on this machine, and why not another; the journal's start line records it."""

from __future__ import annotations

import torch


def implementations(device: torch.device) -> dict[str, str]:
    """Op name -> the implementation that runs on `device`, with the reason."""
    chunked = "chunked PyTorch, gradient in forward"
    reason = "no Triton kernel yet" if device.type == "cuda" else "no GPU"
    return {"linear_soft_ce": f"{chunked} ({reason})", "linear_ce": f"{chunked} ({reason})"}
