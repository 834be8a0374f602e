"""What a plan assumes of the machines; every number can be given."""

from __future__ import annotations

from dataclasses import dataclass

from megadistill.core.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """As its data sheet says; dense operations."""

    memory: float
    """Bytes."""
    bf16: float
    """Operations a second."""
    fp32: float
    """TF32 and the like are not switched on."""


_GB = 1e9
GPUS = {
    "a100-40gb": Gpu(40 * _GB, 312e12, 19.5e12),
    "a100": Gpu(80 * _GB, 312e12, 19.5e12),
    "h100": Gpu(80 * _GB, 989e12, 67e12),
    "h200": Gpu(141 * _GB, 989e12, 67e12),
    "b200": Gpu(180 * _GB, 2250e12, 80e12),
}


@dataclass(frozen=True)
class Machine:
    """Where a run is to be."""

    gpus: int
    """Ranks."""
    memory: float
    """Bytes a GPU."""
    peak: float
    """Operations a second a GPU, in the run's precision."""
    mfu: float = 0.4
    """Which share of them a step reaches, where no tokens/s were measured: of all operations, what is computed twice
    among them (PaLM, Chowdhery et al. 2022, appendix B, calls that hardware FLOPs utilisation)."""
    tokens_per_second: float | None = None
    """Measured, of all ranks together."""
    gpus_per_node: int = 8
    inside: float = 400 * _GB
    """Bytes a second and GPU between GPUs of a node (NVLink of an H100: 450 a direction)."""
    outside: float = 40 * _GB
    """Between nodes (a 400 Gb/s port a GPU: 50)."""
    disk: float = 2 * _GB
    """Bytes a second at which all ranks together write a checkpoint."""
    hours_between_failures: float = 50_000
    """GPU-hours a failure (Llama 3, Dubey et al. 2024, section 3.3.4: 419 interruptions in 54 days of 16,384 GPUs)."""

    def link(self, ranks: int) -> float:
        """Bytes a second and GPU in a ring of so many."""
        return self.inside if ranks <= self.gpus_per_node else self.outside


def gpu(name: str) -> Gpu:
    """By its name.

    Raises:
        UserError: it is not in the table.
    """
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name}: not known", f"there are {', '.join(GPUS)}", "give --memory and --peak instead")
    return GPUS[name.lower()]


def size(text: str) -> float:
    """Bytes of `80GB`, `141 GB`, `64GiB`, `500MB`.

    Raises:
        UserError: it is no size.
    """
    units = {"gib": 2.0**30, "mib": 2.0**20, "gb": 1e9, "mb": 1e6, "tb": 1e12}
    plain = text.strip().lower()
    for unit, factor in units.items():
        number = plain.removesuffix(unit).strip()
        if plain.endswith(unit) and number.replace(".", "", 1).isdigit() and float(number) > 0:
            return float(number) * factor
    raise UserError(f"{text!r} is no size of memory", "", "write it as 80GB or 64GiB")
