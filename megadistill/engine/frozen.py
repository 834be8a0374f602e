"""How a frozen model that does not fit is spread over the ranks, or kept in host memory between uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from megadistill.core.dist import World
from megadistill.engine.deepspeed import import_deepspeed


def spread(model: nn.Module, in_host_memory: bool, device: torch.device, world: World) -> None:
    """Leave on this rank only its part of the weights of `model`, in place; a collective.

    ZeRO 3 without an optimizer (Rajbhandari et al. 2020): the whole of a layer is gathered when it is used and let go
    after, so every rank must run the model equally often. The numbers stay the same to the last bit.

    Args:
        in_host_memory: keep this rank's part there.
    """
    offload = {"offload_param": {"device": "cpu", "pin_memory": device.type == "cuda"}} if in_host_memory else {}
    dtype = next(model.parameters()).dtype
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world.size,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "memory_efficient_linear": False,
            **offload,
        },
    }
    deepspeed = import_deepspeed()
    # layer by layer, from where it is: `initialize` would first put the whole of it on the device
    deepspeed.zero.Init(module=model, config_dict_or_path=config, remote_device="cpu" if in_host_memory else None)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    # the engine is not kept: what it has hooked into the model does the work
    deepspeed.initialize(model=model, config=config)
