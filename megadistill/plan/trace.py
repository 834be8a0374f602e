"""What a micro-batch holds in memory and computes, found by running it on torch's meta device: shapes, no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from megadistill.kernels.head_losses import workspace_bytes

META = torch.device("meta")


class Trace(TorchDispatchMode):
    """While it is entered, every storage that an operator makes is counted from its birth to its death, and every
    product that is computed.

    Integers and booleans (ids, masks) stay real, on the CPU, since models branch on them; floating-point values have
    shapes only. Both count: on a device they would lie side by side.
    """

    def __init__(self, on_gpu: bool) -> None:
        """`on_gpu`: with the kernels and the allocator's granules of a GPU rather than of a CPU."""
        super().__init__()
        self.on_gpu = on_gpu
        self.live, self.peak, self.flops = 0, 0, 0
        self._granule = 512 if on_gpu else 1
        self._counted: set[int] = set()

    def __enter__(self) -> Trace:
        super().__enter__()
        self._attention = functional.scaled_dot_product_attention
        functional.scaled_dot_product_attention = self._attend
        return self

    def __exit__(self, *error: Any) -> None:
        functional.scaled_dot_product_attention = self._attention
        super().__exit__(*error)

    def hold(self, tensor: Tensor) -> None:
        """Count what was there before, or was made unseen."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._counted:
            return
        size = -(-storage.nbytes() // self._granule) * self._granule
        self._counted.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def ignore(self, tensor: Tensor) -> None:
        """Never count what is accounted for otherwise, or is not on this device."""
        self._counted.add(tensor.untyped_storage()._cdata)

    def workspace(self, size: int) -> None:
        """Count what an operator holds while it runs."""
        self.peak = max(self.peak, self.live + size)

    def take_flops(self) -> int:
        """Those since the last call."""
        found, self.flops = self.flops, 0
        return found

    @contextmanager
    def measured(self) -> Iterator[list[int]]:
        """Yields a list that then holds the peak inside, above what was live before."""
        before, whole = self.live, self.peak
        self.peak = self.live
        found = [0]
        try:
            yield found
        finally:
            found[0] = self.peak - before
            self.peak = max(whole, self.peak)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        """Attention keeps queries, keys, values, its output and one number a row, where a fused kernel does it (torch's
        for CPUs has no dropout); on the meta device torch would keep the matrix of probabilities instead."""
        dropout = options.get("dropout_p", rest[1] if len(rest) > 1 else 0.0)
        if not self.on_gpu and dropout:
            return self._attention(query, key, value, *rest, **options)
        fused: Tensor = _Fused.apply(query, key, value, self)
        return fused

    def _gone(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shapes_only = any(tensor.device == META for tensor in given)
        if kwargs.get("device") == META and not shapes_only and _is_whole(func, given, kwargs.get("dtype")):
            kwargs["device"] = torch.device("cpu")
        if shapes_only:
            args, kwargs = tree_map_only(Tensor, _without_numbers, (args, kwargs))
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        self._account(func, args, kwargs, result)
        return result

    def _account(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        packet = func.overloadpacket
        if packet is torch.ops.megadistill.head_losses:
            hidden, weight, _, _, _, teacher_hidden, teacher_weight, _, _, arithmetic, top_ids = args[:11]
            heads = hidden, weight, teacher_hidden, teacher_weight
            top_k, (terms, _, vocabulary) = top_ids is not None, args[13:16]
            self.workspace(workspace_bytes(*heads, terms, arithmetic, top_k, vocabulary, self.on_gpu))
            self.flops += 6 * hidden.shape[0] * weight.numel()
            self.flops += sum(2 * h.shape[0] * w.numel() for h, w in zip(teacher_hidden, teacher_weight, strict=True))
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, trace: Trace) -> Tensor:
        """query [B, A, L, D], key and value [B, K, S, D] -> [B, A, L, D] in the memory layout of [B, L, A, D]."""
        out = query.new_empty(*query.shape[:-1], value.shape[-1]).transpose(1, 2).contiguous().transpose(1, 2)
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        ctx.trace, ctx.flops = trace, 4 * query.numel() * key.shape[-2]
        trace.flops += ctx.flops
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        ctx.trace.flops += ctx.flops * 5 // 2  # five products instead of two
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _is_whole(func: Any, given: list[Tensor], dtype: torch.dtype | None) -> bool:
    """Whether an operator that is asked to make something on the meta device makes integers or booleans."""
    if dtype is None:
        dtype = given[0].dtype if given else None
    if dtype is None:
        return func.overloadpacket is torch.ops.aten.arange
    return not dtype.is_floating_point


def _without_numbers(tensor: Tensor) -> Tensor:
    return tensor if tensor.device == META else torch.empty_like(tensor, device=META)
