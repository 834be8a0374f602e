"""DeepSpeed behind typed fields: the complete config it is given, and the engine that the loop drives."""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
import math
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from megadistill.core import dist
from megadistill.core.errors import Diverged, UserError
from megadistill.core.schema import Problems, Strict
from megadistill.engine import elastic
from megadistill.engine.optimizer import OptimizerConfig, build_optimizer

_VALUES_PER_MIB = 2**18
MOST_GATHERED = 1_000_000_000
"""Values that ZeRO 3 keeps gathered at most, and how far ahead of their next use."""


class EngineConfig(Strict):
    """How parameters, gradients and optimizer state are kept. Every field ends in `deepspeed.json`, which is complete:
    DeepSpeed accepts misspelt top-level keys silently and moves its defaults between releases."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What is sharded over the ranks: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters
    (Rajbhandari et al. 2020)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the student's forward and backward. fp16 (with loss scaling) is for GPUs without bf16; CPUs refuse it."""
    gradient_accumulation_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What gradients are summed in over micro-batches; bf16 costs 0.9 % of the gradient at 64 of them."""
    communication_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What gradients are summed in over ranks."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Keep optimizer state in host memory (ZeRO 1 to 3)."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Keep parameters in host memory between uses (ZeRO 3)."""
    activation_checkpointing: bool = False
    """Recompute the student's activations in the backward pass: less memory, about a third more compute."""
    compile: bool = False
    """Run the student's layers through torch.compile: some of the first step's time for fewer passes over memory."""
    reduce_bucket_mib: PositiveInt | None = None
    """Gradients are reduced in buckets of this many MiB (fp32). None: a quarter of them, so that the first ones are on
    their way while the backward pass runs; at least the largest one, and at most 200."""
    allgather_bucket_mib: PositiveInt | None = None
    """Updated parameters are gathered in buckets of this many MiB (fp32). None: as for gradients."""
    overlap_communication: bool = False
    """Reduce gradients while the backward pass runs. On a GPU the order of sums may then differ between runs."""
    prefetch_bucket_mib: int = Field(50, ge=0)
    """ZeRO 3: how much to gather ahead of use."""
    persistence_threshold: int = Field(100_000, ge=0)
    """ZeRO 3: parameters of fewer values than this stay whole on every rank."""
    loss_scale: float = Field(0.0, ge=0)
    """fp16 only: 0 scales dynamically."""

    def reduce_bucket_values(self, sizes: Sequence[int]) -> int:
        """`reduce_bucket_mib` as DeepSpeed counts: in values, whatever their dtype.

        Args:
            sizes: values of each trainable parameter.
        """
        return _bucket(self.reduce_bucket_mib, sizes)

    def allgather_bucket_values(self, sizes: Sequence[int]) -> int:
        """As `reduce_bucket_values`."""
        return _bucket(self.allgather_bucket_mib, sizes)

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> EngineConfig:
        lines = []
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            lines.append("offload_optimizer: it needs zero_stage 1, 2 or 3")
        if self.offload_parameters != "none" and self.zero_stage != 3:
            lines.append("offload_parameters: it needs zero_stage 3")
        if self.compile and self.zero_stage == 3:
            lines.append("compile: at zero_stage 3 weights come and go within a layer; use zero_stage 0, 1 or 2")
        if self.zero_stage == 0 and self.gradient_accumulation_dtype != self.precision:
            lines.append(
                f"gradient_accumulation_dtype: zero_stage 0 sums gradients in the precision of the parameters; set it "
                f"to {self.precision}, or zero_stage to 1"
            )
        if lines:
            raise Problems(lines)
        return self


def _bucket(mib: int | None, sizes: Sequence[int]) -> int:
    if mib is not None:
        return mib * _VALUES_PER_MIB
    return min(max(sum(sizes) // 4, max(sizes, default=0), _VALUES_PER_MIB), 200 * _VALUES_PER_MIB)


@dataclass(frozen=True)
class BatchShape:
    """The batch triple that DeepSpeed wants; derived, never stated."""

    global_size: int
    micro_size: int
    accumulation: int


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    applied: bool
    """False when a gradient was not finite: DeepSpeed skips the update silently."""
    gradient_norm: float
    """Global, before clipping."""


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and told which accelerator to use before it guesses and warns."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # shared-memory reductions are chosen by LOCAL_SIZE and fault or hang on CPUs without wide vectors; gloo does not
    os.environ.pop("LOCAL_SIZE", None)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # torch 2.13 deprecates collectives that DeepSpeed 0.19 still calls
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU, DeepSpeed loads a shared-memory operator through ninja at every start. It is never used (see above),
    # takes a minute to compile the first time, and a process killed while loading it leaves a lock that every later
    # start waits for. (By this path: `deepspeed.comm.torch` as an attribute is the real torch.)
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    # DeepSpeed asks every optimizer whether it is its Muon, whose module compiles functions while it is imported:
    # torch's compiler would be loaded at every start, a fifth of the time that takes.
    compiler = torch.compile
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        torch.compile = compiler
    return deepspeed


def engine_fits(config: EngineConfig, device: torch.device) -> None:
    """Whether this machine can do what the config asks.

    Raises:
        UserError: it cannot.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("engine.precision=fp16 needs a GPU", "this machine has none", "use bf16 or fp32")
    if (
        config.precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError("engine.precision=bf16 needs a newer GPU", torch.cuda.get_device_name(), "use fp16 or fp32")


def deepspeed_config(
    engine: EngineConfig, optimizer: OptimizerConfig, batch: BatchShape, sizes: Sequence[int]
) -> dict[str, Any]:
    """The complete DeepSpeed config: every default that matters stands in it.

    Args:
        sizes: values of each trainable parameter.
    """
    offload = {"device": engine.offload_optimizer, "pin_memory": False}
    zero: dict[str, Any] = {
        "stage": engine.zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": engine.reduce_bucket_values(sizes),
        "use_multi_rank_bucket_allreduce": True,
        "allgather_partitions": True,
        "allgather_bucket_size": engine.allgather_bucket_values(sizes),
        "overlap_comm": engine.overlap_communication,
        "load_from_fp32_weights": True,
        "elastic_checkpoint": False,
        "sub_group_size": 1_000_000_000,
        "stage3_prefetch_bucket_size": engine.prefetch_bucket_mib * _VALUES_PER_MIB,
        "stage3_param_persistence_threshold": engine.persistence_threshold,
        "stage3_max_live_parameters": MOST_GATHERED,
        "stage3_max_reuse_distance": MOST_GATHERED,
        "stage3_gather_16bit_weights_on_model_save": False,
        "ignore_unused_parameters": True,
        "round_robin_gradients": False,
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
        "zero_quantized_gradients": False,
        # true would replace torch's linear in the whole process, and with it the teacher's and student's numbers
        "memory_efficient_linear": False,
    }
    if engine.offload_optimizer != "none":
        zero["offload_optimizer"] = offload
    if engine.offload_parameters != "none":
        zero["offload_param"] = {"device": engine.offload_parameters, "pin_memory": False}
    return {
        "train_batch_size": batch.global_size,
        "train_micro_batch_size_per_gpu": batch.micro_size,
        "gradient_accumulation_steps": batch.accumulation,
        "managed_gradient_accumulation": True,
        "gradient_clipping": optimizer.gradient_clipping,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": engine.communication_dtype,
        "data_types": {"grad_accum_dtype": engine.gradient_accumulation_dtype},
        "bf16": {"enabled": engine.precision == "bf16", "check_grad_overflow": True},
        "fp16": {
            "enabled": engine.precision == "fp16",
            "auto_cast": False,
            "loss_scale": engine.loss_scale,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "checkpoint": {"tag_validation": "Fail", "load_universal": False, "use_node_local_storage": False},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "disable_allgather": False,
        "dataloader_drop_last": False,
        "seed": 0,
    }


class Engine:
    """A module whose parameters DeepSpeed shards, reduces and updates."""

    def __init__(
        self,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        module: nn.Module,
        batch: BatchShape,
        device: torch.device,
    ) -> None:
        """Wrap `module`, whose forward returns (loss, ...).

        Raises:
            UserError: the machine cannot do what the config asks.
        """
        engine_fits(config, device)
        deepspeed = import_deepspeed()
        self.config, self.device = config, device
        sizes = [parameter.numel() for parameter in module.parameters() if parameter.requires_grad]
        self.deepspeed_config = deepspeed_config(config, optimizer, batch, sizes)
        self.learning_rate = optimizer.learning_rate
        self.accumulation = batch.accumulation
        self.engine, *_ = deepspeed.initialize(
            model=module.to(device), optimizer=build_optimizer(optimizer, module), config=self.deepspeed_config
        )
        self._states: list[tuple[Any, str]] = []
        # DeepSpeed hands its states to us instead of writing them, and leaves the copying to us too
        store = self.engine.checkpoint_engine
        store.save = lambda state_dict, path: self._states.append((on_host(state_dict), path))
        store.preserves_storage_sharing = lambda: False

    @property
    def module(self) -> Any:
        """What was wrapped."""
        return self.engine.module

    def accumulate_over(self, micro_batches: int) -> None:
        """Tell how many micro-batches the step has that begins now."""
        if micro_batches == self.accumulation:
            return
        self.engine.set_train_batch_size(self.engine.train_batch_size() // self.accumulation * micro_batches)
        self.engine.micro_steps = 0  # it looks for the end of a step by counting from its first micro-batch
        if self.config.offload_optimizer != "none":
            self.engine.optimizer.gradient_accumulation_steps = micro_batches  # a copy of its own
        self.accumulation = micro_batches

    def forward(self, *args: Any) -> Any:
        return self.engine(*args)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of `loss`, which is this micro-batch's share of the global mean, times the number of
        ranks and micro-batches: DeepSpeed divides by both."""
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # only counts the micro-batch

    def step(self, learning_rate_factor: float) -> Update:
        """Update the parameters after the last micro-batch."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.learning_rate * learning_rate_factor
        if self.config.zero_stage == 0 and self.config.precision == "fp32":
            return self._plain_step()
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return Update(bool(self.engine.was_step_applied()), float("nan") if norm is None else float(norm))

    def _plain_step(self) -> Update:
        """fp32 at stage 0 is torch's own AdamW: nobody else looks whether the gradient is finite."""
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
        if not math.isfinite(norm):
            raise Diverged(
                f"the gradient's norm is {norm}",
                "engine.zero_stage=0 cannot skip such a step",
                "lower optimizer.learning_rate, or use zero_stage 1, which skips it; the checkpoints are intact",
            )
        self.engine.step()
        return Update(True, norm)

    def snapshot(self, folder: Path) -> Callable[[], None]:
        """Copy this rank's part of the training state to host memory; a collective.

        Returns:
            what writes the copy into `folder`, which all ranks share; it may run in a thread.
        """
        assert self.engine.micro_steps % self.accumulation == 0, "checkpoints are taken between steps"
        self.engine.save_checkpoint(str(folder), tag="deepspeed", save_latest=False)
        states, self._states = self._states, []

        def write() -> None:
            for state, path in states:
                torch.save(state, path)

        return write

    def load(self, folder: Path) -> None:
        """Read back what a `snapshot` wrote, at the same number of ranks and ZeRO stage."""
        path, _ = self.engine.load_checkpoint(str(folder), tag="deepspeed", load_lr_scheduler_states=False)
        assert path is not None, f"DeepSpeed found nothing in {folder}"

    def close(self) -> None:
        """Let go of what DeepSpeed has hooked into torch; the engine is not used again."""
        self.engine.destroy()

    def adopt(self, universal: Path, updates: int) -> None:
        """Take the state that another number of ranks or another ZeRO stage has saved (see `engine.elastic`)."""
        elastic.adopt(self.engine, self.module, universal, updates, self.config.zero_stage)

    def updates(self) -> int:
        """How many optimizer steps were applied; skipped ones do not count."""
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        return max((int(state["step"]) for state in optimizer.state.values() if "step" in state), default=0)

    def parameter_hash(self) -> str:
        """sha256 over every rank's share of all parameters as the forward pass uses them; the same on every rank."""
        digest = hashlib.sha256()
        for parameter in self.module.parameters():
            digest.update(_bytes(getattr(parameter, "ds_tensor", parameter)))
        return hashlib.sha256("".join(dist.gather_objects(digest.hexdigest())).encode()).hexdigest()

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, whole fp32 CPU tensor) of every parameter; a collective, so every rank must exhaust it."""
        for name, parameter in self.module.named_parameters():
            value, shape = self._whole(parameter), _whole_shape(parameter)
            assert value.shape == shape, f"{name} is {list(value.shape)}, not {list(shape)}"
            yield name, value

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        """A copy in fp32, from what the optimizer keeps where it trains the parameter; a collective."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        sharded = self.config.zero_stage > 0 or self.config.precision != "fp32"
        value = safe_get_full_fp32_param(parameter) if sharded and parameter.requires_grad else None
        in_pieces = value is None and parameter.shape != _whole_shape(parameter)
        with GatheredParameters([parameter], enabled=in_pieces):
            return (parameter if value is None else value).detach().float().cpu().clone()


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Also where ZeRO 3 keeps it in pieces."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def on_host(value: Any) -> Any:
    """A copy of nested containers that shares nothing with them; tensors are in host memory."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.device.type == "cpu" else value.detach().cpu()
    if type(value) in (dict, OrderedDict):
        return type(value)((key, on_host(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(on_host(item) for item in value)
    return copy.deepcopy(value)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
