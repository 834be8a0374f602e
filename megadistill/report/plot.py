"""What every plot stands in: a drawing that is stretched to the room there is, and text at its axes that is not.

The drawing is an SVG of SIZE x SIZE units, whatever its shape on the page; its strokes keep their width
(`vector-effect` in the page's style), and a dot is a stroke of no length with round ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Tick = tuple[float, str]
"""Where along its axis, from 0 to 1 (left to right, bottom to top), and what stands there."""

SIZE = 1000


def frame(label: str, parts: Sequence[str], x: Sequence[Tick], y: Sequence[Tick], height: int = 200) -> str:
    """HTML of a whole plot.

    Args:
        label: for who cannot see it.
        parts: the SVG's elements.
        height: of the drawing, in pixels.
    """
    grid = [f'<path class="rule" d="M0 {at_y(place)}H{SIZE}"/>' for place, _ in y]
    beside = "".join(f'<span style="bottom:{100 * place:.2f}%">{escape(text)}</span>' for place, text in y)
    widest = escape(max((text for _, text in y), key=len, default=""))
    below = "".join(f'<span style="left:{100 * place:.2f}%"{_end(place)}>{escape(text)}</span>' for place, text in x)
    return (
        f'<div class="plot" role="img" aria-label="{escape(label)}" style="--height:{height}px">'
        f'<div class="y"><i>{widest}</i>{beside}</div>'
        f'<svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none">{"".join([*grid, *parts])}</svg>'
        f'<div class="x">{below}</div></div>'
    )


def at_x(share: float) -> str:
    """A coordinate of the drawing."""
    return f"{SIZE * share:.1f}"


def at_y(share: float) -> str:
    return f"{SIZE * (1 - share):.1f}"


def line(points: Sequence[tuple[float, float]], style: str, tip: str = "") -> str:
    """A polyline through points whose coordinates are shares."""
    path = " ".join(f"{at_x(x)},{at_y(y)}" for x, y in points)
    return f'<polyline class="line {style}" points="{path}">{_tip(tip)}</polyline>'


def dot(x: float, y: float, style: str, tip: str = "", size: float = 5) -> str:
    """Args:
    size: its diameter in pixels.
    """
    path = f"M{at_x(x)} {at_y(y)}h0"
    return f'<path class="dot {style}" d="{path}" style="stroke-width:{size:.1f}px">{_tip(tip)}</path>'


def upright(x: float, tip: str = "") -> str:
    """A thin vertical line."""
    return f'<path class="mark" d="M{at_x(x)} 0V{SIZE}">{_tip(tip)}</path>'


def bar(x: float, width: float, low: float, high: float, style: str, tip: str = "") -> str:
    """From height `low` to `high`, `width` wide from `x` on."""
    place = f'x="{at_x(x)}" y="{at_y(high)}" width="{at_x(width)}" height="{at_x(high - low)}"'
    return f'<rect class="bar {style}" {place}>{_tip(tip)}</rect>'


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _end(place: float) -> str:
    """The first and the last one stay inside."""
    return ' class="first"' if place < 0.02 else ' class="last"' if place > 0.98 else ""
