"""How many rows a program of the relations' Triton kernels takes, so that its tiles fit a GPU's shared memory."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

WIDEST = 256
"""Values of a head."""
H200_BYTES = 227 * 1024
"""Shared memory that one block of threads may have on compute capability 9.0; 8.0 has 163 KiB, 8.6 and 8.9 have 99."""

Sides = tuple[Tensor, Tensor, Tensor, Tensor]
"""Queries and keys [B, A, L, D] of the student, [B, A, L, E] of the teacher; or keys and queries."""


def why_not(sides: Sides) -> str:
    """Why no program can take them on their device; empty when one can."""
    widths, sizes = _widths_and_sizes(sides)
    if max(widths) > WIDEST:
        return f"heads of {max(widths)} values are wider than {WIDEST}"
    room = available(sides[0].device)
    if rows(widths, sizes, room) is None:
        least = shared_bytes(16, widths, sizes)
        return (
            f"16 rows of heads of {widths[0]} and {widths[1]} values take {-(-least // 1024)} KiB of shared memory, "
            f"of which a block of threads has {room // 1024} here"
        )
    return ""


def chosen(sides: Sides) -> int:
    """Rows of a tile where `why_not` knows no reason."""
    found = rows(*_widths_and_sizes(sides), available(sides[0].device))
    assert found is not None
    return found


def rows(widths: tuple[int, int], sizes: tuple[int, int], room: int) -> int | None:
    """The most rows of a tile that fit `room` bytes of shared memory, and leave registers for two tiles of scores.

    Args:
        widths: values of the student's and of the teacher's heads.
        sizes: bytes of such a value.
    """
    most = 64 if max(sizes) == 2 and max(widths) <= 128 else 32
    return next((n for n in (64, 32, 16) if n <= most and shared_bytes(n, widths, sizes) <= room), None)


def shared_bytes(num_rows: int, widths: tuple[int, int], sizes: tuple[int, int]) -> int:
    """What a program of either pass takes at most, as compiled for 7.5, 8.0, 8.6 and 9.0: of both models a tile of
    queries and one of keys, and where matrix units multiply (values of 2 bytes) one more in the layout that they want;
    a tile of scores, and what sums over rows exchange."""
    tiles = sum((3 if s == 2 else 2) * num_rows * padded(w) * s for w, s in zip(widths, sizes, strict=True))
    scores = 0 if max(sizes) == 2 else 4 * num_rows * num_rows
    return tiles + scores + 80 * num_rows


def padded(width: int) -> int:
    """Columns of a tile: a power of two that the matrix units take."""
    return max(1 << (width - 1).bit_length(), 16)


@cache
def available(device: torch.device) -> int:
    """Bytes of shared memory that one block of threads may have; those of an H200 where there is no GPU to ask."""
    if device.type != "cuda":
        return H200_BYTES
    found = torch.cuda.get_device_properties(device)
    return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))


def _widths_and_sizes(sides: Sides) -> tuple[tuple[int, int], tuple[int, int]]:
    ours, theirs = (torch.promote_types(a.dtype, b.dtype).itemsize for a, b in (sides[:2], sides[2:]))
    return (sides[0].shape[-1], sides[2].shape[-1]), (ours, theirs)
