"""How are numbers written for people?"""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Four significant digits, thousands apart, no needless exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def short(value: float) -> str:
    """As on an axis, where there is little room: 25k, 1.5M."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (unit if unit > 1e3 else 1e4):
            return f"{value / unit:.4g}{letter}"
    return number(value)


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers that span low to high; only whole ones if asked for."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    step = max(math.ceil(step), 1) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade that is touched; ordinary ticks where that gives too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    inside = [tick for tick in every if low <= tick <= high]
    if len(inside) < 3:
        return [tick for tick in ticks(low, high, 5) if tick > 0] or [low, high]
    return inside if len(inside) <= 8 else [tick for tick in inside if f"{tick:e}".startswith("1")]
