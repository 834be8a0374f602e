"""Would ranks train different parameters? Asked once, before the first backward pass."""

from __future__ import annotations

from torch import Tensor, nn

from megadistill.core.dist import gather_objects
from megadistill.core.errors import UserError


def refuse_uneven_gradients(loss: Tensor, module: nn.Module, step: int, micro_batch: int) -> None:
    """Stop before the first backward if ranks would touch different parameters, or in another order.

    ZeRO 1 and 2 then report success with gradients 90 to 208 % wrong, because buckets of different parameters are
    summed. The autograd graph of `loss` is walked, so nothing has been communicated yet when this raises, on all ranks.

    Raises:
        UserError: names a parameter that some ranks reach and others do not.
    """
    reached = _parameters_reached(loss, module)
    everywhere = gather_objects(reached)
    if all(names == everywhere[0] for names in everywhere):
        return
    uneven = sorted(set().union(*everywhere) - set(everywhere[0]).intersection(*everywhere))
    detail = ", ".join(uneven[:4]) if uneven else "the same ones, in different orders"
    raise UserError(
        f"step {step}, micro-batch {micro_batch}: ranks would train different parameters",
        detail,
        "every objective must use all its parameters in every micro-batch (a sum over no rows is still a sum)",
    )


def _parameters_reached(loss: Tensor, module: nn.Module) -> list[str]:
    """Names of the parameters that backward from `loss` will touch, in the order of a depth-first walk."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: list[str] = []
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            found.append(names[id(variable)])
        stack.extend(next_node for next_node, _ in node.next_functions)
    return found
