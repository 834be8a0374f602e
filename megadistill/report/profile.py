"""How good the distributions are, drawn: losses by the target's frequency, and how far confidence is to be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megadistill.report.bars import bars
from megadistill.report.chart import Line, Plot
from megadistill.report.collect import RunFacts, is_number
from megadistill.report.curves import shaded
from megadistill.report.plot import dot, frame, line


def profiles(runs: Sequence[RunFacts]) -> Iterator[Plot]:
    """The plots that there is something for."""
    scores = [run.evaluation.get("heldout", {}) for run in runs]
    by_frequency = [found.get("by_frequency") or {} for found in scores]
    entries: list[int] = next((found["entries"] for found in by_frequency if "entries" in found), [])
    note = (
        "From left to right: tenths of the training tokens, those of the most frequent vocabulary entries first "
        f"({', '.join(f'{count:,}' for count in entries)} entries)."
    )
    models = [(run.name, place, run.color, "") for place, run in enumerate(runs)]
    models += [(label, place, shade, "teacher_") for label, place, shade in shaded(runs)]
    for title, key in (
        ("KL(teacher || student) by token frequency (nats)", "kl"),
        ("held-out loss by token frequency (nats)", "loss"),
    ):
        legend = [
            (
                _line(label, by_frequency[place].get(prefix + key), shade, bool(prefix)),
                _known(scores[place], prefix + key),
            )
            for label, place, shade, prefix in models
        ]
        legend = [(one, overall) for one, overall in legend if one.points]
        groups, levels = ([one for one, _ in legend if one.dashed is dashed] for dashed in (False, True))
        if groups:
            tenths = [str(1 + x) for x in range(1 + int(max(x for one, _ in legend for x, _ in one.points)))]
            yield Plot(title, bars(title, tenths, groups, levels, what="tenth "), legend, note)
    drawn = [_sure(label, scores[place], shade, prefix) for label, place, shade, prefix in models]
    drawn = [(one, counts, error) for one, counts, error in drawn if one.points]
    if drawn:
        yield Plot(
            "accuracy by confidence",
            reliability([(one, counts) for one, counts, _ in drawn]),
            [(one, error) for one, _, error in drawn],
            "Of the entry ranked first, in ten bins of its probability; large dots are of full bins. On the "
            "diagonal a model is calibrated; the numbers above are expected calibration errors.",
        )


def reliability(models: Sequence[tuple[Line, Sequence[int]]]) -> str:
    """Accuracy by confidence of each model, with how many targets each of its points stands for."""
    parts = [line([(0, 0), (1, 1)], "even")]
    for one, targets in models:
        parts.append(line(one.points, one.style, one.label))
        for (x, y), count in zip(one.points, targets, strict=True):
            tip = f"{one.label}: right in {y:.1%} where {x:.1%} sure, {count:,} targets"
            parts.append(dot(x, y, one.style, tip, 3 + 7 * (count / max(targets)) ** 0.5))
    shares = [(share / 5, f"{share * 20}%") for share in range(6)]
    return frame("accuracy by confidence", parts, shares, shares)


def _line(label: str, values: Sequence[float | None] | None, shade: int, dashed: bool = False) -> Line:
    return Line(label, [(x, y) for x, y in enumerate(values or []) if is_number(y)], shade, dashed)


def _known(scores: dict[str, Any], key: str) -> float | None:
    return scores[key] if is_number(scores.get(key)) else None


def _sure(label: str, scores: dict[str, Any], shade: int, prefix: str) -> tuple[Line, list[int], float | None]:
    found = scores.get(f"{prefix}calibration") or {"confidence": [], "accuracy": [], "targets": []}
    three = zip(found["confidence"], found["accuracy"], found["targets"], strict=True)
    used = [(sure, right, count) for sure, right, count in three if count and is_number(sure) and is_number(right)]
    points = [(sure, right) for sure, right, _ in used]
    error = _known(scores, f"{prefix}calibration_error")
    return Line(label, points, shade, dashed=bool(prefix)), [count for _, _, count in used], error
