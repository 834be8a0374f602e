"""What DeepSpeed holds on a device beside activations, played with tensors of the meta device.

Follows deepspeed 0.19's `stage_1_and_2.py`, `stage3.py`, `bf16_optimizer.py` and `engine.py`, with the config that
`engine.deepspeed_config` writes (contiguous gradients, lazily made buckets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from megadistill.engine.deepspeed import MOST_GATHERED, EngineConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAM_MOMENTS = 2


@dataclass
class Sharded:
    """The state of one rank. Everything in it is a meta tensor, alive as long as DeepSpeed would keep it."""

    engine: EngineConfig
    groups: Sequence[Sequence[nn.Parameter]]
    """Trainable parameters as the optimizer groups them."""
    ranks: int
    on_gpu: bool
    resting: dict[str, list[Tensor]] = field(default_factory=dict)
    """Part -> tensors that stay between steps: weights (where they are not the modules' own), optimizer, buffers."""
    gradients: list[Tensor] = field(default_factory=list)
    buckets: list[Tensor] = field(default_factory=list)
    summed: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    """Stage 1: whole gradients, over the micro-batches of a step."""

    def __post_init__(self) -> None:
        stage, engine = self.engine.zero_stage, self.engine
        self.dtype = DTYPES[engine.precision]
        self.sums = DTYPES[engine.gradient_accumulation_dtype]
        self.wire = DTYPES[engine.communication_dtype]
        self.sizes = [sum(p.numel() for p in group) for group in self.groups]
        self.bucket = engine.reduce_bucket_values([p.numel() for p in self.parameters])
        shares = [-(-size // (self.ranks if stage else 1)) for size in self.sizes]
        self.shares = shares
        on_host = self.on_host = engine.offload_optimizer != "none"
        # DeepSpeed's BF16_Optimizer: the sums stay whole, and one flat tensor of them is reduced
        self.whole_sums = stage == 1 and self.dtype == torch.bfloat16 and self.sums == torch.float32 and not on_host
        master = stage > 0 or self.dtype != torch.float32
        if not on_host:
            self.resting["optimizer state"] = [_new(n, torch.float32) for n in shares for _ in range(ADAM_MOMENTS)]
            if master:
                self.resting["fp32 weights"] = [_new(n, torch.float32) for n in shares]
        if self.whole_sums:
            self.resting["gradients"] = [_new(n, self.sums) for n in self.sizes]
        if stage == 3:
            self.resting["student's weights, gathered"] = [_new(min(sum(self.sizes), MOST_GATHERED), self.dtype)]
            if engine.offload_parameters == "none":
                self.resting["student's share"] = [_new(sum(shares), self.dtype)]
            if not on_host:
                self.resting["gradients"] = [_new(sum(shares), self.sums)]
            self.resting["buckets"] = [_new(self.bucket, self.wire)]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.groups for parameter in group]

    def on_gradient(self, parameter: nn.Parameter) -> None:
        """A gradient is there: what becomes of it."""
        gradient, stage = parameter.grad, self.engine.zero_stage
        assert gradient is not None
        if stage == 0 or self.whole_sums:
            return  # they wait for the end of the backward pass
        if stage in (1, 2) and not self.buckets:
            staged = self.sums if stage == 1 and self.dtype != self.sums else self.dtype
            values = self.bucket
            self.buckets = [_new(values, staged) for _ in range(1 + self.engine.overlap_communication)]
        parameter.grad = None
        if stage == 1:
            self.summed.setdefault(
                parameter, gradient if self.sums == gradient.dtype else _new(gradient.numel(), self.sums)
            )
        elif stage == 2 and not self.gradients and not self.on_host:
            self.gradients = [_new(n, self.sums) for n in self.shares]

    def after_backward(self) -> None:
        """The end of a micro-batch."""
        self.buckets = []
        if self.whole_sums:
            for parameter in self.parameters:
                parameter.grad = None

    def step(self) -> None:
        """The optimizer's step, after the last micro-batch."""
        stage = self.engine.zero_stage
        if stage == 0:
            if self.ranks > 1:
                _new(sum(self.sizes), self.dtype)
            wide = [p.grad.float() for p in self.parameters if p.grad is not None]  # no copies in fp32
            self._adam(max((p.numel() for p in self.parameters), default=0))
            del wide
            for parameter in self.parameters:
                parameter.grad = None
            return
        if self.whole_sums:
            self._adam(max(self.shares))
            return
        if stage == 1 and not self.on_host:
            self.gradients = [_new(n, self.sums) for n in self.shares]
        self.summed.clear()
        if self.on_host:
            return
        for number, size in enumerate(self.shares):
            flat = _new(size, torch.float32)
            if stage in (1, 2):
                self.gradients[number] = flat
            self._adam(size)
            del flat
            if stage in (1, 2):
                self.gradients[number] = _new(0, torch.float32)
        self.gradients = []

    def _adam(self, values: int) -> None:
        """What AdamW needs besides: the root of the second moment, and on a CPU its quotient too."""
        temporaries = [_new(values, torch.float32) for _ in range(1 if self.on_gpu else 2)]
        del temporaries


def _new(values: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(values, dtype=dtype, device="meta")
