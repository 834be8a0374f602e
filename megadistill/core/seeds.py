"""Where every random number comes from: one run seed, and names that say what it is for."""

from __future__ import annotations

from hashlib import blake2b


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and `names` only, the same on every machine and version."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def reseed(seed: int, *names: str | int) -> None:
    """Reseed torch's global generators (dropout draws from them) from `derive(seed, *names)`.

    Called before every micro-batch with (step, micro-batch, rank), so that a resumed run draws what the
    uninterrupted one drew and a checkpoint carries no generator state.
    """
    import torch

    torch.manual_seed(derive(seed, *names))
