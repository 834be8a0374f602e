"""The peers of tools/bench_head.py: what each computes of the same inputs, in its own way."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

T = 2.0  # of the soft loss


@dataclass
class Inputs:
    """N rows; heads without bias, which not every peer has."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor
    soft: bool = True
    """False: the labels' cross-entropy alone."""

    def rows(self, keep: Tensor) -> Inputs:
        return Inputs(self.hidden[keep], self.weight, self.teacher_hidden[keep], self.teacher_weight, self.labels[keep])

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()


Loss = Callable[[Tensor, Tensor, Inputs], Tensor]


def torchtune(chunks: int = 8) -> Loss:
    """Its two files are plain PyTorch; the package around them wants other versions of other packages."""

    def load(name: str) -> Any:
        folder = importlib.util.find_spec("torchtune").submodule_search_locations[0]
        spec = importlib.util.spec_from_file_location(name, Path(folder) / "modules" / "loss" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    kl = load("kd_losses").ForwardKLWithChunkedOutputLoss(chunks)
    ce = load("ce_chunked_output_loss").CEWithChunkedOutputLoss(chunks)
    kl.fkl_loss.forward = torch.compile(kl.fkl_loss.forward)  # as its recipe does
    ce.compute_cross_entropy = torch.compile(ce.compute_cross_entropy)

    def loss(hidden: Tensor, weight: Tensor, given: Inputs) -> Tensor:
        z = [part @ weight.T for part in hidden.unsqueeze(0).chunk(chunks, 1)]
        with torch.no_grad():
            u = [part @ given.teacher_weight.T for part in given.teacher_hidden.unsqueeze(0).chunk(chunks, 1)]
        labels = given.labels.unsqueeze(0)
        return T * T * kl([p / T for p in z], [p / T for p in u], labels) + ce(z, labels)  # without p's own entropy

    return loss


def liger_chunked(device: str) -> Loss:
    """beta = 0 is forward KL; its loss lacks T^2, so the weight has it."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    on_gpu = device == "cuda"
    size = 1024 if on_gpu else 128  # what is fastest
    module = LigerFusedLinearJSDLoss(1.0, T * T, beta=0.0, temperature=T, compiled=on_gpu, chunk_size=size)

    def loss(hidden: Tensor, weight: Tensor, given: Inputs) -> Tensor:
        return module(hidden, weight, given.teacher_hidden, given.teacher_weight, given.labels)

    return loss


def liger_fused(device: str) -> Loss:
    """Its Triton kernels, one for each loss."""
    if device != "cuda":
        raise RuntimeError("needs a GPU")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD

    soft, hard = LigerFusedLinearJSD(jsd_beta=0.0, temperature=T), LigerFusedLinearCrossEntropyLoss()

    def loss(hidden: Tensor, weight: Tensor, given: Inputs) -> Tensor:
        divergence = soft(hidden, weight, given.teacher_hidden, given.teacher_weight)
        return T * T * divergence + hard(weight, hidden, given.labels)

    return loss


def liger_probabilities(device: str) -> Loss:
    """Its KL with the teacher's probabilities, which have to be formed first, and its cross-entropy."""
    if device != "cuda":
        raise RuntimeError("needs a GPU")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    from liger_kernel.transformers.fused_linear_kl_div import LigerFusedLinearKLDivLoss

    soft, hard = LigerFusedLinearKLDivLoss(temperature=T), LigerFusedLinearCrossEntropyLoss()

    def loss(hidden: Tensor, weight: Tensor, given: Inputs) -> Tensor:
        with torch.no_grad():
            goal = ((given.teacher_hidden @ given.teacher_weight.T).float() / T).softmax(-1)
        return T * T * soft(hidden, weight, goal) + hard(weight, hidden, given.labels)

    return loss


def torch_linear_ce() -> Loss:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda hidden, weight, given: functional.linear_cross_entropy(hidden, weight, given.labels, options=options)


def cut_ce(device: str) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    kind = "cce" if device == "cuda" else "torch_compile"
    return lambda hidden, weight, given: linear_cross_entropy(hidden, weight, given.labels, impl=kind)
