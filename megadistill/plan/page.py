"""A plan as text for a terminal, and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megadistill.plan.estimate import USABLE, Plan
from megadistill.run.config import RunConfig


def page(plan: Plan, config: RunConfig) -> str:
    """All of it."""
    return "\n".join(
        [*_models(plan), "", *_memory(plan), "", *_work(plan, config), "", *_disk(plan, config), "", *_scale(plan)]
    )


def values(plan: Plan) -> dict[str, Any]:
    """The same as plain values, bytes and seconds."""
    work = asdict(plan.work) | {"gpu_hours": _gpu_hours(plan)}
    return asdict(plan) | {"fits": plan.fits, "work": work}


def _models(plan: Plan) -> list[str]:
    p = plan.parameters
    besides = p.learned - p.student
    learned = f", {p.learned:,} learned" if besides else ""
    teacher = f"{p.teacher:,} parameters" if p.teacher else "none in the process"
    return [f"student  {p.student:,} parameters{learned}", f"teacher  {teacher}"]


def _memory(plan: Plan) -> list[str]:
    found, machine = plan.footprint, plan.machine
    rows = [(name, readable(size)) for name, size in found.parts.items()]
    usable = machine.memory * USABLE
    verdict = "fits" if plan.fits else "does NOT fit"
    rows.append(
        ("peak", f"{readable(found.peak)}  {verdict}: {readable(usable)} of {readable(machine.memory)} are usable")
    )
    whose = "of the students' GPUs" if found.teacher_rank else f"of {machine.gpus} GPUs"
    lines = ["memory of the GPU" if machine.gpus == 1 else f"memory of each {whose}", *_table(rows)]
    if found.teacher_rank:
        lines.append(f"  of each of the teacher's own: {readable(found.teacher_rank)}")
    if not plan.fits:
        told = f"fits with: {plan.change}" if plan.change else "nothing that was tried makes it fit"
        lines.append(f"  -> {told}")
    return lines


_SETTLED = " (micro_size: auto is the most that fit by this estimate; a run measures it)"


def _work(plan: Plan, config: RunConfig) -> list[str]:
    done, machine, unit = plan.work, plan.machine, _unit(config)
    how = (
        f"at {machine.mfu:.0%} of {machine.peak / 1e12:,.0f} TFLOP/s a GPU" if machine.tokens_per_second is None else ""
    )
    settled = _SETTLED if config.batch.micro_size == "auto" else ""
    rows = [("steps", f"{done.steps:,} of {done.tokens_per_step:,} {unit}s")]
    if plan.rows is not None:
        rows.append(("epochs", f"{done.epochs:.3g} of {plan.rows.examples:,} {_examples(plan)}"))
    rows.append(("a rank's share", f"{plan.accumulation} x {plan.micro_size} {_examples(plan)}{settled}"))
    if plan.rows is not None and unit == "token":
        means = f"{plan.rows.tokens:.1f} tokens in the mean, {plan.rows.width:.1f} with padding"
        rows.append(("a row", f"{means}, {plan.rows.longest} at most; memory is for {config.sequence_length}"))
    rows.append((f"{unit}s", f"{done.tokens:,}"))
    rows.append(("operations", f"{done.flops:.3g}, {done.flops / done.tokens:.3g} a {unit}"))
    if done.seconds is not None and done.tokens_per_second is not None:
        rows.append(("speed", f"{done.tokens_per_second:,.0f} {unit}s/s {how}".rstrip()))
        rows.append(("time", f"{_time(done.seconds)}, {_gpu_hours(plan):,.1f} GPU-hours"))
    return ["work", *_table(rows)]


def _unit(config: RunConfig) -> str:
    return "image" if config.words is None else "token"


def _examples(plan: Plan) -> str:
    if plan.rows is None:
        return "rows"
    return "examples" if plan.rows.each == 1 else f"examples of {plan.rows.each} rows"


def _disk(plan: Plan, config: RunConfig) -> list[str]:
    kept = config.checkpoint.keep + bool(config.checkpoint.keep_best)
    if config.checkpoint.keep_every_steps:
        kept += config.steps // config.checkpoint.keep_every_steps
    failures = plan.machine.hours_between_failures
    rows = [
        ("checkpoint", f"{readable(plan.checkpoint)}, {_time(plan.save_seconds)} to write at "
                       f"{readable(plan.machine.disk)}/s; {kept} are kept: {readable(kept * plan.checkpoint)}"),
        ("best interval", f"{_time(plan.best_interval)}{_steps(plan)} (one failure in {failures:,.0f} GPU-hours; "
                          f"checkpoint.every_steps is {config.checkpoint.every_steps:,})"),
    ]  # fmt: skip
    if plan.rows is None:
        rows.insert(1, ("shards", f"{readable(4 * plan.work.tokens)} at most, where no row is seen twice"))
    return ["disk", *_table(rows)]


def _steps(plan: Plan) -> str:
    seconds = plan.work.step_seconds
    return f", {max(round(plan.best_interval / seconds), 1):,} steps" if seconds else ""


def _scale(plan: Plan) -> list[str]:
    if not plan.work.step_seconds:
        return []
    machine = plan.machine
    title = (
        f"a step with these micro-batches on more GPUs, nothing overlapped, {readable(machine.inside)}/s inside a node "
        f"of {machine.gpus_per_node} and {readable(machine.outside)}/s between nodes"
    )
    lines = [title, "  GPUs  " + "".join(f"{f'ZeRO {stage}':>26}" for stage in (1, 2, 3))]
    for ranks in sorted({p.ranks for p in plan.projections}):
        cells = [
            f"{p.seconds * 1e3:,.1f} ms {p.efficiency:5.1%} {readable(p.sent):>8}"
            for p in plan.projections
            if p.ranks == ranks
        ]
        lines.append(f"  {ranks:>4}  " + "".join(f"{cell:>26}" for cell in cells))
    return lines


def _gpu_hours(plan: Plan) -> float:
    return (plan.work.seconds or 0.0) / 3600 * plan.machine.gpus


def _table(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def readable(size: float) -> str:
    """`81.2 GB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 1e3 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, factor in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.1f} s"
