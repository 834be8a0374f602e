"""Everything a run is made of, in one typed tree, and how it is read."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

import megadistill.data.corpora
import megadistill.models.students
import megadistill.objectives
import megadistill.tasks
import megadistill.teachers
from megadistill.core.errors import UserError
from megadistill.core.schema import OneOf, Problems, Strict, Tree, discover, explain, override, read_yaml, rebuild
from megadistill.core.types import Attends

for _package in (
    megadistill.data.corpora,
    megadistill.models.students,
    megadistill.objectives,
    megadistill.tasks,
    megadistill.teachers,
):
    discover(_package)

from megadistill.data.config import DataConfig  # noqa: E402  the unions inside need every kind imported first
from megadistill.engine.deepspeed import EngineConfig  # noqa: E402
from megadistill.engine.optimizer import OptimizerConfig  # noqa: E402
from megadistill.engine.schedule import ScheduleConfig, factor  # noqa: E402
from megadistill.models.students.base import Student  # noqa: E402
from megadistill.objectives.base import Objective  # noqa: E402
from megadistill.run.cross import clashes  # noqa: E402
from megadistill.run.sections import (  # noqa: E402
    BatchConfig,
    CheckpointConfig,
    EvaluateConfig,
    LogConfig,
    TrainConfig,
)
from megadistill.tasks.base import Task, TokenTask  # noqa: E402
from megadistill.teachers.base import Teacher  # noqa: E402


class RunConfig(Strict):
    """One run: what is distilled into what, on which text or task, how, and for how long."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Names the run directory."""
    directory: Path = Path("runs")
    """Run directories live in here; this run's is <directory>/<name>."""
    seed: int = 0
    """Of the order of rows, masks, fresh weights and dropout."""
    plugins: list[str] = Field(default_factory=list)
    """Python modules to import first; the kinds they define are then known."""
    data: DataConfig | None = None
    """The text of pretraining; a run has this or a `task`."""
    task: OneOf[Task] | None = None
    """The examples of fine-tuning and task-specific distillation."""
    teacher: OneOf[Teacher] | None = None
    """None: plain pretraining with objectives that need no teacher."""
    student: OneOf[Student]
    """What learns, and how it starts."""
    objectives: list[OneOf[Objective]] = Field(min_length=1)
    """What it learns by: the loss is the sum of weight x loss over them."""
    batch: BatchConfig
    """How many rows a step sees."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How the gradient becomes an update, and the peak learning rate."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate moves over the run."""
    engine: EngineConfig = EngineConfig()
    """How DeepSpeed runs it: ZeRO stage, precision, memory."""
    train: TrainConfig
    """How long it trains, and when it gives up."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When it is saved."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """When it is scored on held-out rows."""
    log: LogConfig = LogConfig()
    """What is written down of it."""

    @property
    def run_directory(self) -> Path:
        return self.directory / self.name

    @property
    def text(self) -> DataConfig:
        """`data`, where the run has no task."""
        assert self.data is not None
        return self.data

    @property
    def distils(self) -> bool:
        """Whether an objective learns from the teacher; else it gives the student its first weights at most."""
        return any(objective.needs().teacher for objective in self.objectives)

    @property
    def teacher_ranks(self) -> int:
        """How many of the ranks that a run is started with are its teacher's."""
        apart = getattr(self.teacher, "placement", "") == "own_ranks"
        return int(getattr(self.teacher, "own_ranks", 0)) if apart else 0

    def students(self, ranks: int) -> int:
        """How many of the ranks that a run is started with are students'; the teacher's are the last ones.

        Raises:
            UserError: fewer than the teacher's.
        """
        theirs = self.teacher_ranks
        if ranks - theirs < max(theirs, 1):
            raise UserError(
                f"teacher.own_ranks is {theirs}, and {ranks} rank(s) are to run",
                "each rank of a teacher answers at least one student's",
                f"start at least {2 * theirs} ranks, or set another teacher.placement",
            )
        return ranks - theirs

    @property
    def words(self) -> DataConfig | TokenTask | None:
        """What training reads, as far as it is text: it has a tokenizer and a sequence_length. None: images."""
        if isinstance(self.task, TokenTask):
            return self.task
        return self.data

    @property
    def rows_named(self) -> list[str]:
        """The names of the corpora, or of the one task."""
        if self.task is not None:
            return [getattr(self.task, "name", self.task.kind)]
        return [corpus.name for corpus in self.text.corpora]

    @property
    def teacher_meant(self) -> Teacher | None:
        """`teacher`, or what it stands for on these rows.

        Raises:
            UserError: it knows nothing of them.
        """
        return None if self.teacher is None else self.teacher.stands_for(self.rows_named)

    @property
    def sequence_length(self) -> int:
        """Positions of a row, at most; an image is one."""
        return 1 if self.words is None else self.words.sequence_length

    @property
    def attends(self) -> Attends:
        """What models are shown of a row; a task's is a pair, or one text."""
        return self.text.attends if self.task is None else "pair"

    def micro_sizes(self, ranks: int) -> list[int]:
        """What `batch.micro_size: auto` may come to at so many students' ranks, ascending.

        Raises:
            UserError: a global batch does not divide, or into single rows where two are needed.
        """
        exchanging = [o.label for o in self.objectives if o.needs().again]
        sizes = [rows for rows in self.batch.micro_sizes(ranks) if rows > 1 or not exchanging]
        if not sizes:
            raise UserError(
                f"batch.global_size: {', '.join(exchanging)} exchanges states between rows of a micro-batch",
                f"batch.global_size={self.batch.global_size} is one row for each of {ranks} ranks",
                "raise batch.global_size, or use fewer ranks",
            )
        return sizes

    def with_micro_size(self, rows: int) -> RunConfig:
        """With so many rows a pass, one of `micro_sizes`."""
        return self.model_copy(update={"batch": self.batch.with_micro_size(rows)})

    @property
    def steps(self) -> int:
        """How many the run takes in all."""
        return self.train.steps + sum(self.train.more_steps)

    def learning_rate_factor(self, step: int) -> float:
        """The share of the peak learning rate at a step, counted from 1."""
        start, length, end = 0, self.schedule.total_steps or self.train.steps, self.train.steps
        for more in self.train.more_steps:
            if step > end:
                start, length = end, more
            end += more
        return factor(self.schedule, step - start, length)

    def weights_at(self, step: int) -> list[float]:
        """Every objective's weight at a step, counted from 1."""
        return [objective.weight_at(step) for objective in self.objectives]

    @model_validator(mode="after")
    def _sections_go_together(self) -> RunConfig:
        if lines := list(clashes(self)):
            raise Problems(lines)
        return self


def load(path: Path, assignments: Sequence[str] = (), origins: dict[str, str] | None = None) -> RunConfig:
    """Read, override and check a config file.

    Args:
        path: the YAML file.
        assignments: `a.b.0.c=value` from the command line.
        origins: receives where each given key came from.

    Raises:
        UserError: names every problem at once.
    """
    return check(override(read_yaml(path, origins), assignments, origins), str(path))


def check(tree: Tree, where: str) -> RunConfig:
    """The typed config of a tree.

    Raises:
        UserError: names every problem at once, with `where` it was read.
    """
    import_plugins(tree.get("plugins") or [])
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, RunConfig, where) from None


def dump(config: RunConfig) -> dict[str, Any]:
    """The whole config, defaults included, as plain values."""
    return config.model_dump(mode="json")


def import_plugins(names: Any) -> None:
    """Import modules that define kinds, which are then known everywhere in a config.

    Raises:
        UserError: one cannot be imported.
    """
    if not isinstance(names, list) or not names:
        return
    for name in names:
        try:
            importlib.import_module(str(name))
        except ImportError as error:
            raise UserError(f"plugins: cannot import {name!r}", str(error), "put its folder on PYTHONPATH") from None
    rebuild(RunConfig)
