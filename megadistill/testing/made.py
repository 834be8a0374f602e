"""What tensors a piece of code makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megadistill.plan.trace import Trace


class Made(TorchDispatchMode):
    """While it is entered, notes the bytes of the largest tensor that an operator makes, other than views of `known`
    ones."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.bytes, self.known = 0, {t.untyped_storage().data_ptr() for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in self.known:
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


def held(fn: Callable[..., Sequence[Tensor]], given: Sequence[Any]) -> int:
    """The bytes that tensors made by `fn(*given)` take at most at once, without those that it returns."""
    trace = Trace(on_gpu=False)
    for leaf in tree_leaves(given):
        if isinstance(leaf, Tensor):
            trace.ignore(leaf)
    with torch.no_grad(), trace:
        results = fn(*given)
    return trace.peak - sum(t.untyped_storage().nbytes() for t in results)
