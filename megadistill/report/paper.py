"""The tables of the papers, one's own models above: scores, what is kept of the teacher's, how much smaller, faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megadistill.report.bars import bars
from megadistill.report.chart import Line, Plot
from megadistill.report.curves import NEUTRAL
from megadistill.report.models import GLUE, MACRO, TASKS, Group, Model, Score, published
from megadistill.report.numbers import number, short

MEAN = "mean"
MOST_GROUPS = 6
"""Tasks in one plot; more names would not fit on a narrow screen."""

_TITLES = {"macro": "GLUE", "macro_without_wnli": "without WNLI", **TASKS, "mnli": "MNLI m/mm", "squad": "SQuAD EM/F1"}


@dataclass(frozen=True)
class Cell:
    """A number, and what is said of it in small letters."""

    text: str = ""
    small: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    """Groups of rows under common columns."""

    columns: list[str]
    groups: list[tuple[Group, list[tuple[Model, list[Cell]]]]]
    note: str


def paper_table(models: Sequence[Model], teacher: Model | None) -> PaperTable | None:
    """One's own models, and those of the papers that were scored on one of their tasks; None without models.

    Args:
        teacher: the one of them that the others are compared with.
    """
    if not models:
        return None
    ours = Group("Measured here", _how(models), sorted(models, key=lambda one: one is not teacher), teacher)
    mine = {name for model in models for name in model.scores}
    groups = [ours, *(g for g in published() if any(mine & set(model.scores) for model in g.models))]
    everyone = [model for group in groups for model in group.models]
    shown = [name for name in _TITLES if any(name in model.scores for model in everyone)]
    common = common_tasks(models)
    keys = [*(name for name in shown if name in MACRO), *([MEAN] if common else [])]
    keys += [name for name in shown if name not in MACRO]
    titles = [f"mean of {len(common)}" if key == MEAN else _TITLES[key] for key in keys]
    rows = [(one, [(model, _cells(model, one.teacher, keys, common)) for model in one.models]) for one in groups]
    return PaperTable(["parameters", "smaller", "seconds", "faster", *titles], rows, _note(models, teacher, common))


def common_tasks(models: Sequence[Model]) -> list[str]:
    """GLUE's tasks that all models with several of them have, where these are some but not all nine: means over all
    nine do not exist there, and this one can be taken of everyone."""
    several = [model for model in models if sum(task in model.scores for task in GLUE) > 1]
    found = [task for task in GLUE if several and all(task in model.scores for model in several)]
    return found if 1 < len(found) < len(GLUE) else []


def paper_plots(models: Sequence[Model], teacher: Model | None) -> Iterator[Plot]:
    """Scores by task, the seeds marked; and everything as a share of the teacher's."""
    scored = [model for model in models if any(task in model.scores for task in TASKS)]
    tasks = [task for task in TASKS if any(task in model.scores for model in scored)]
    size = -(-len(tasks) // max(-(-len(tasks) // MOST_GROUPS), 1))
    for start in range(0, len(tasks), max(size, 1)):
        part = tasks[start : start + size]
        lines, seeds = [], []
        for model in scored:
            found = [(place, model.scores[task]) for place, task in enumerate(part) if task in model.scores]
            lines.append(_line(model, [(place, score.value) for place, score in found]))
            several = [(place, seed) for place, score in found if len(score.seeds) > 1 for seed in score.seeds]
            seeds.append(Line(f"{model.name}, one seed", several, NEUTRAL))
        title = f"scores: {', '.join(TASKS[task] for task in part)}"
        note = "Medians over seeds, in per cent; dots are seeds." if any(one.points for one in seeds) else ""
        drawing = bars(title, [TASKS[task] for task in part], lines, marks=seeds)
        yield Plot("scores (%)", drawing, [(one, None) for one in lines], note)
    others = [model for model in models if model is not teacher]
    if teacher is not None and others:
        yield _shares(others, teacher)


def _shares(models: Sequence[Model], teacher: Model) -> Plot:
    names = ("score", "parameters", "seconds")
    lines = []
    for model in models:
        both = [task for task in TASKS if task in model.scores and task in teacher.scores]
        mine, its = model.mean(both), teacher.mean(both)
        shares = (
            mine / its if mine is not None and its else None,
            _inverse(model.smaller_than(teacher)),
            _inverse(model.faster_than(teacher)),
        )
        lines.append(_line(model, [(place, 100 * share) for place, share in enumerate(shares) if share is not None]))
    level = Line(teacher.name, [(place, 100.0) for place in range(len(names))], NEUTRAL, dashed=True)
    title = "share of the teacher's (%)"
    note = "Score: the mean over the tasks that both were scored on."
    return Plot(title, bars(title, names, lines, [level]), [(one, None) for one in (*lines, level)], note)


def _line(model: Model, points: list[tuple[float, float]]) -> Line:
    return Line(model.name, points, NEUTRAL if model.color is None else model.color)


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def _cells(model: Model, teacher: Model | None, keys: Sequence[str], common: Sequence[str]) -> list[Cell]:
    beside = None if teacher is model else teacher
    cells = [
        _mean(model, beside, common) if key == MEAN else _scored(model.scores.get(key), beside, key) for key in keys
    ]
    count = next(iter(model.parameters.values()), None)
    ratios = [None, None] if beside is None else [model.smaller_than(beside), model.faster_than(beside)]
    smaller, faster = (Cell() if ratio is None else Cell(f"{ratio:.3g}×") for ratio in ratios)
    size = Cell() if count is None else Cell(short(count))
    time = Cell() if model.seconds is None else Cell(number(model.seconds))
    return [size, smaller, time, faster, *cells]


def _scored(score: Score | None, teacher: Model | None, key: str) -> Cell:
    if score is None:
        return Cell()
    spread = () if score.std is None else (f"±{score.std:.1f}",)
    its = None if teacher is None else teacher.scores.get(key)
    return Cell(
        "/".join(f"{part:.1f}" for part in score.parts),
        (*spread, *_kept(score.value, None if its is None else its.value)),
    )


def _mean(model: Model, teacher: Model | None, common: Sequence[str]) -> Cell:
    value = model.mean(common)
    if value is None:
        return Cell()
    return Cell(f"{value:.1f}", _kept(value, None if teacher is None else teacher.mean(common)))


def _kept(value: float, teachers: float | None) -> tuple[str, ...]:
    return (f"{value / teachers:.1%}",) if teachers is not None and teachers > 0 else ()


def _how(models: Sequence[Model]) -> str:
    timings = sorted({model.timing for model in models if model.seconds})
    return "dev sets, IMDb's test set" + (f"; passes over {'; '.join(timings)}" if timings else "")


def _note(models: Sequence[Model], teacher: Model | None, common: Sequence[str]) -> str:
    told = [
        "In per cent. Measured here: medians over seeds, ± their standard deviation; of a GLUE task's two metrics the "
        "mean. Seconds: of one pass over STS-B's dev set at batch 1 on the CPU. What is empty was not measured, or not "
        "published. Published scores are as their authors give them, by their metrics and on their sets."
    ]
    told.append(
        "Below a score: its share of its group's teacher's."
        if teacher
        else "Name the teacher, as in --teacher FOLDER, to see what of it is kept."
    )
    if common:
        told.append(f"Mean of {len(common)}: {', '.join(GLUE[task] for task in common)}.")
    if teacher and teacher.seconds:
        other = [model.name for model in models if model.seconds and model.timing != teacher.timing]
        told += [f"{', '.join(other)}: timed otherwise than {teacher.name}, so not compared."] if other else []
    return " ".join(told)
