"""How groups of bars are drawn: one bar a model side by side, with levels across them and marks on them."""

from __future__ import annotations

from collections.abc import Sequence

from megadistill.report.chart import Line
from megadistill.report.numbers import number, short, ticks
from megadistill.report.plot import bar, dot, frame, line

GAP = 0.24
"""Between groups of bars, of a group's width."""


def bars(
    title: str,
    names: Sequence[str],
    models: Sequence[Line],
    levels: Sequence[Line] = (),
    marks: Sequence[Line] = (),
    what: str = "",
) -> str:
    """A whole plot.

    Args:
        names: of the groups.
        models: points are (number of the group, value); a group may be missing, a value may be below 0.
        levels: likewise; thin lines across the group.
        marks: dots on the bars of the model of the same place.
        what: stands before a group's name where a bar is pointed at.
    """
    values = [y for one in (*models, *levels, *marks) for _, y in one.points]
    y_ticks = ticks(min(0, *values), max(0, *values), 4)
    bottom, span = y_ticks[0], y_ticks[-1] - y_ticks[0]
    width = (1 - GAP) / len(models) / len(names)

    def up(y: float) -> float:
        return (y - bottom) / span

    def tip(one: Line, x: float, y: float) -> str:
        return f"{one.label}, {what}{names[int(x)]}: {number(y)}"

    parts = []
    for place, one in enumerate(models):
        for x, y in one.points:
            left = (x + GAP / 2) / len(names) + place * width
            parts.append(bar(left, width, up(min(y, 0)), up(max(y, 0)), one.style, tip(one, x, y)))
    for one in levels:
        for x, y in one.points:
            ends = [((x + GAP / 4) / len(names), up(y)), ((x + 1 - GAP / 4) / len(names), up(y))]
            parts.append(line(ends, f"level {one.style}", tip(one, x, y)))
    for place, one in enumerate(marks):
        for x, y in one.points:
            middle = (x + GAP / 2) / len(names) + (place + 0.5) * width
            parts.append(dot(middle, up(y), "seed", tip(one, x, y)))
    below = [((x + 0.5) / len(names), name) for x, name in enumerate(names)]
    return frame(title, parts, below, [(up(y), short(y)) for y in y_ticks])
