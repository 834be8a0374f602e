"""How a checkpoint goes on at another number of ranks, or another ZeRO stage.

DeepSpeed's own converter turns the shards of all ranks into one file per parameter and kind of state (its universal
form); frozen parameters, which it leaves out, are put beside them. Every rank then takes its share of each into the
engine that it has. The next save is a plain one of the new layout, so the universal form never outlives the start that
needed it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megadistill.core.errors import UserError

STATES = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""

_SHARES = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""What DeepSpeed's optimizers call a rank's fp32 parameters: at ZeRO 3, at 1 and 2, and at 1 in bf16."""
_RANK = re.compile(r"rank_(\d+)")
"""In the name of a file of model states: that of the rank which wrote it comes first."""


def convert(shards: Path, output: Path, frozen: Sequence[str] = ()) -> None:
    """Write the universal form of DeepSpeed's `shards` (ZeRO 1 to 3) into `output`; for one process.

    Args:
        frozen: names of the parameters that are not trained.

    Raises:
        UserError: DeepSpeed could not.
    """
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(shards), "--output_folder", str(output)]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    here = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # the converter is no rank of this run
    environ = {name: value for name, value in os.environ.items() if name not in here}
    done = subprocess.run(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise UserError(
            f"DeepSpeed could not convert {shards} to another layout",
            (done.stdout.strip().splitlines() or ["no output"])[-1],
            "continue with the number of ranks and the ZeRO stage that wrote the checkpoint",
        )
    if frozen:
        _put_beside(shards, output, frozen)


def frozen_names(module: nn.Module) -> list[str]:
    """Parameters that no optimizer has."""
    return [name for name, parameter in module.named_parameters() if not parameter.requires_grad]


def _put_beside(shards: Path, output: Path, frozen: Sequence[str]) -> None:
    """Write frozen parameters as the converter does the others."""
    files = {int(_RANK.findall(file.name)[0]): file for file in shards.glob("*model_states.pt")}
    ranks = [torch.load(files[rank], map_location="cpu", weights_only=False, mmap=True) for rank in sorted(files)]
    for name in frozen:
        folder = output / "zero" / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(_joined(ranks, name), folder / "fp32.pt")


def _joined(ranks: Sequence[dict[str, Any]], name: str) -> Tensor:
    """One frozen parameter from the model states of all ranks that wrote some: ZeRO 3 keeps it in padded pieces, 2 has
    it whole beside the module, and 1 in it."""
    shapes = ranks[0].get("frozen_param_shapes")
    if not shapes:
        whole: Tensor = ranks[0]["module"][name]
        return whole.clone()
    pieces = [rank["frozen_param_fragments"][name].flatten() for rank in ranks]
    return torch.cat(pieces)[: shapes[name].numel()].reshape(shapes[name])


def adopt(engine: Any, module: nn.Module, universal: Path, updates: int, zero_stage: int) -> None:
    """Take parameters and optimizer state from a universal form; a collective, called on every rank.

    Args:
        engine: DeepSpeed's, at ZeRO 1 to 3.
        module: what it wraps.
        universal: what `convert` wrote.
        updates: optimizer steps that were applied so far: AdamW's bias correction counts them.

    Raises:
        UserError: the checkpoint is of another model.
    """
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    _make_state(engine.optimizer, updates, zero_stage)
    for name, parameter in _trained(module):
        folder = universal / "zero" / name
        shape = getattr(parameter, "ds_shape", parameter.shape)
        for state in ("fp32", *STATES):
            value = _read(folder / f"{state}.pt", shape)
            if zero_stage == 3:
                part = _own_part(value, parameter)
                if state == "fp32":
                    safe_set_local_fp32_param(parameter, part)
                else:
                    safe_set_local_optimizer_state(parameter, part, state)
            elif state == "fp32":
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, state)
    for name in frozen_names(module):
        _set_frozen(module.get_parameter(name), universal / "zero" / name / "fp32.pt", zero_stage)
    _to_working_precision(engine.optimizer, zero_stage)


def _set_frozen(parameter: nn.Parameter, file: Path, zero_stage: int) -> None:
    """Fill a parameter that has no fp32 master."""
    value = _read(file, getattr(parameter, "ds_shape", parameter.shape))
    if zero_stage == 3:
        parameter.ds_tensor.copy_(_own_part(value, parameter))  # type: ignore[attr-defined]
    else:
        parameter.data.copy_(value)


def _make_state(optimizer: Any, updates: int, zero_stage: int) -> None:
    """AdamW's state of this rank's shares, which it would make at its first step only."""
    for share in next(getattr(optimizer, name) for name in _SHARES if hasattr(optimizer, name)):
        of_share = {state: torch.zeros_like(share) for state in STATES}
        optimizer.optimizer.state[share] = {"step": torch.tensor(float(updates), device=share.device), **of_share}
    if zero_stage < 3:
        optimizer._lazy_init_hp_params_optimizer_state()  # parameters learn where in the shares they are


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _read(file: Path, shape: torch.Size) -> Tensor:
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"the checkpoint has no parameter {file.parent.name}", str(file), "it was written by another student"
        ) from None
    value: Tensor = saved["param"] if isinstance(saved, dict) else saved
    if value.numel() != shape.numel():
        raise UserError(
            f"the checkpoint's {file.parent.name} has {value.numel():,} values, the student's {shape.numel():,}",
            str(file),
            "it was written by another student",
        )
    return value.float().reshape(shape)


def _own_part(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's share of a whole value at ZeRO 3: equal parts, the last one padded."""
    size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    padded = torch.zeros(size * ranks, dtype=value.dtype)
    padded[: value.numel()] = value.flatten()
    return padded[size * rank : size * (rank + 1)]


def _to_working_precision(optimizer: Any, zero_stage: int) -> None:
    """Copy the fp32 masters to what the forward pass uses, as the end of an optimizer step does."""
    if zero_stage < 3:
        optimizer.update_lp_params()
        return
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:  # those that stay whole between steps
        optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
