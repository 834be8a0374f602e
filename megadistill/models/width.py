"""How a teacher's weights become those of a narrower student: by keeping the first coordinates, or the principal ones.

Every axis of every weight has a role: the residual stream, attention heads, the inside of a feed-forward block, or
entries of a table. The residual stream is sliced, or rotated onto the principal directions of the teacher's input
embeddings and then sliced (PCA by eigenvectors of E'E, which is the truncated SVD of E); heads and inner units are
always sliced, head by head, since no rotation commutes with what lies between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from megadistill.core.errors import UserError

Width = Literal["equal", "slice", "svd"]

Role = Literal["residual", "heads", "keys", "fused_heads", "inner", "fused_inner", "entries"]

ROLES: tuple[tuple[str, tuple[Role, Role]], ...] = (
    (r"(query|q_lin|q_proj)$", ("heads", "residual")),
    (r"(key|value|[kv]_lin|[kv]_proj)$", ("keys", "residual")),
    (r"(attention\.output\.dense|attention\.dense|out_lin|o_proj|attn\.Wo)$", ("residual", "heads")),
    (r"attn\.Wqkv$", ("fused_heads", "residual")),
    (r"attn\.c_attn$", ("residual", "fused_heads")),  # GPT-2 stores [in, out]
    (r"attn\.c_proj$", ("heads", "residual")),
    (r"(intermediate\.dense|ffn\.lin1|gate_proj|up_proj|albert_layers\.\d+\.ffn)$", ("inner", "residual")),
    (r"(\.\d+\.output\.dense|ffn\.lin2|down_proj|mlp\.Wo|ffn_output)$", ("residual", "inner")),
    (r"mlp\.Wi$", ("fused_inner", "residual")),
    (r"mlp\.c_fc$", ("residual", "inner")),
    (r"mlp\.c_proj$", ("inner", "residual")),
)
"""Module name -> the roles of its matrix's axes; its bias has the role of the output axis."""
_STORED_IN_OUT = re.compile(r"\.c_(attn|proj|fc)$")
_TABLE = re.compile(r"(embeddings?|wte|wpe|embed_tokens|decoder|vocab_projector|lm_head)$")
_NORM = re.compile(r"(norm|ln_\w+)(\.weight)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Narrower:
    """Fits a teacher's weights to a student of the same architecture; built by `narrower`."""

    teacher: Any
    student: Any
    """Their configs."""
    basis: Tensor | None
    """[H, Hs] orthonormal columns, or None to slice."""

    def fit(self, name: str, value: Tensor, shape: torch.Size) -> Tensor:
        """`value` of the teacher, as the student's parameter `name` of `shape`; unchanged shapes may still differ, and
        are the caller's to refuse."""
        module, _, kind = name.rpartition(".")
        roles = self._roles(module, kind, value)
        for axis, role in enumerate(roles):
            if role == "residual" and kind == "weight" and value.dim() == 1 and _NORM.search(module):
                value = self._norm(value)
            elif (value.dim() > axis and value.shape[axis] != shape[axis]) or (role == "residual" and self._rotates):
                value = self._along(value, axis, role)
        return value

    @property
    def _rotates(self) -> bool:
        return self.basis is not None

    def _roles(self, module: str, kind: str, value: Tensor) -> tuple[Role, ...]:
        for pattern, roles in ROLES:
            if re.search(pattern, module):
                if value.dim() == 2:
                    return roles
                return (roles[1 if _STORED_IN_OUT.search(module) else 0],)
        width = self.teacher.hidden_size
        by_size: list[Role] = ["residual" if size == width else "entries" for size in value.shape]
        if _TABLE.search(module):
            by_size[0] = "entries"  # also where there happen to be as many as the model is wide
        return tuple(by_size)

    def _norm(self, gain: Tensor) -> Tensor:
        """A gain's diagonal matrix in the new coordinates, off-diagonal terms dropped."""
        if self.basis is None:
            return gain[: self.student.hidden_size]
        return (self.basis.to(gain.dtype) ** 2).T @ gain

    def _along(self, value: Tensor, axis: int, role: Role) -> Tensor:
        moved = value.movedim(axis, -1)
        return self._parts[role](moved).movedim(-1, axis)

    @property
    def _parts(self) -> dict[Role, Callable[[Tensor], Tensor]]:
        return {
            "residual": self._residual,
            "heads": lambda x: self._heads(x, "num_attention_heads"),
            "keys": lambda x: self._heads(x, "num_key_value_heads"),
            "fused_heads": lambda x: _grouped(x, 3, lambda part: self._heads(part, "num_attention_heads")),
            "inner": self._inner,
            "fused_inner": lambda x: _grouped(x, 2, self._inner),
            "entries": lambda x: x,
        }

    def _residual(self, x: Tensor) -> Tensor:
        if self.basis is None:
            return x[..., : self.student.hidden_size]
        return x @ self.basis.to(x.dtype)

    def _heads(self, x: Tensor, field: str) -> Tensor:
        theirs, ours = (_count(config, field) for config in (self.teacher, self.student))
        size = _head_size(self.student)
        return x.unflatten(-1, (theirs, -1))[..., :ours, :size].flatten(-2)

    def _inner(self, x: Tensor) -> Tensor:
        return x[..., : _inner_size(self.student, x.shape[-1])]


def narrower(student: Any, teacher: Any, width: Width) -> Narrower | None:
    """What fits `teacher`'s weights to `student` (transformers models of one architecture); None for equal widths.

    Raises:
        UserError: the student is wider, has other heads than slicing can give, or lies under a rotary embedding whose
            pairs slicing would tear.
    """
    if width == "equal":
        return None
    ours, theirs = student.config, teacher.config
    problems = []
    if ours.model_type != theirs.model_type and (ours.model_type, theirs.model_type) != ("distilbert", "bert"):
        problems.append(f"the student is a {ours.model_type}, the teacher a {theirs.model_type}")
    for field in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        a, b = _count(ours, field), _count(theirs, field)
        if a > b:
            problems.append(f"{field}: {a}, the teacher's is {b}")
    rotary = hasattr(theirs, "rope_parameters") or hasattr(theirs, "rope_theta")
    if _head_size(ours) > _head_size(theirs) or (rotary and _head_size(ours) != _head_size(theirs)):
        problems.append(
            f"heads of {_head_size(ours)} values, the teacher's have {_head_size(theirs)}"
            + (", which its rotary embedding turns in pairs" if rotary else "")
        )
    if width == "svd" and teacher.get_input_embeddings().weight.shape[1] != theirs.hidden_size:
        problems.append("the teacher's embeddings are factorised: they do not lie in the residual stream")
    grouped = [_count(c, "num_attention_heads") / _count(c, "num_key_value_heads") for c in (ours, theirs)]
    if grouped[0] != grouped[1]:
        problems.append(f"{grouped[0]:g} queries a key head, the teacher has {grouped[1]:g}")
    if problems:
        raise UserError(
            f"student.init.width: {width} cannot make this student from its teacher",
            "; ".join(problems),
            "give the student sizes of at most the teacher's, or use student.init: {kind: random}",
        )
    return Narrower(theirs, ours, principal(teacher, ours.hidden_size) if width == "svd" else None)


def attention_widths(config: Any) -> tuple[int | None, int | None]:
    """Of the queries of a layer, and of its keys and its values, all heads together; None where a transformers config
    does not tell (DeepSeek's values are of another width than its keys)."""
    heads = config.num_attention_heads
    grouped = getattr(config, "num_key_value_heads", None) or heads
    if hasattr(config, "v_head_dim") or not (isinstance(heads, int) and isinstance(grouped, int)):
        return None, None
    return heads * _head_size(config), grouped * _head_size(config)


def principal(model: Any, size: int) -> Tensor:
    """[H, size] the directions in which the input embeddings of `model` vary most, orthonormal, largest first."""
    table = model.get_input_embeddings().weight.detach().double()
    values, vectors = torch.linalg.eigh(table.T @ table)
    return vectors[:, values.argsort(descending=True)[:size]]


def _grouped(x: Tensor, groups: int, fn: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([fn(part) for part in x.chunk(groups, dim=-1)], dim=-1)


def _count(config: Any, field: str) -> int:
    value = getattr(config, field, None)
    if value is None and field == "num_key_value_heads":
        value = config.num_attention_heads
    if value is None and field == "intermediate_size":
        value = _inner_size(config, 0)
    assert value is not None
    return int(value)


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return int(size) if size is not None else config.hidden_size // config.num_attention_heads


def _inner_size(config: Any, default: int) -> int:
    """Of the feed-forward blocks, under the names that families give it."""
    for field in ("intermediate_size", "hidden_dim", "n_inner"):
        if getattr(config, field, None) is not None:
            return int(getattr(config, field))
    return 4 * config.hidden_size if hasattr(config, "n_inner") else default
