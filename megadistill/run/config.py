"""Everything a run is made of, in one typed tree, and the checks that cross its sections."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

import megadistill.data.corpora
import megadistill.models.students
import megadistill.objectives
import megadistill.tasks
import megadistill.teachers
from megadistill.core.errors import UserError
from megadistill.core.schema import OneOf, Strict, Tree, discover, explain, kinds, override, read_yaml
from megadistill.core.types import AnswerKind, union_of_needs

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
    plugins: list[str] = Field(default_factory=list)
    """Python modules to import first; the kinds they define are then known."""
    data: DataConfig | None = None
    """The text of pretraining; a run has this or a `task`."""
    task: OneOf[Task] | None = None
    """The examples of fine-tuning and task-specific distillation."""
    teacher: OneOf[Teacher] | None = None
    """None: plain pretraining with objectives that need no teacher."""
    student: OneOf[Student]
    objectives: list[OneOf[Objective]] = Field(min_length=1)
    batch: BatchConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    log: LogConfig = LogConfig()

    @property
    def run_directory(self) -> Path:
        return self.directory / self.name

    @property
    def text(self) -> DataConfig:
        """`data`, where the run has no task."""
        assert self.data is not None
        return self.data

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
    def attention(self) -> Literal["row", "document"]:
        """What a position sees; a task's row is one example."""
        return self.text.attention if self.task is None else "row"

    def micro_sizes(self, ranks: int) -> list[int]:
        """What `batch.micro_size: auto` may come to at so many students' ranks, ascending.

        Raises:
            UserError: a global batch does not divide, or into single rows where two are needed.
        """
        exchanging = [o.label for o in self.objectives if o.needs().again]
        sizes = [rows for rows in self.batch.micro_sizes(ranks) if rows > 1 or not exchanging]
        if not sizes:
            raise UserError(
                f"objectives: {', '.join(exchanging)} exchanges states between rows of a micro-batch",
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
    def _text_or_task(self) -> RunConfig:
        if (self.data is None) == (self.task is None):
            raise ValueError(
                "data: give `data` to pretrain or `task` to learn a task" + ("" if self.data is None else ", not both")
            )
        return self

    @model_validator(mode="after")
    def _objectives_suit_the_task(self) -> RunConfig:
        asked: AnswerKind = "tokens" if self.task is None else self.task.asks
        strange = [o.label for o in self.objectives if asked not in o.suits]
        if strange:
            raise ValueError(f"objectives: {', '.join(strange)} cannot learn {_ASKED[asked]}; use {_LEARNS[asked]}")
        if self.teacher is not None and asked not in self.teacher.suits:
            raise ValueError(f"teacher: {self.teacher.kind} does not teach {_ASKED[asked]}; use online or ensemble")
        everywhere = [o.label for o in self.objectives if getattr(o, "scope", None) == "tokens"]
        if self.task is not None and everywhere:
            raise ValueError(
                f"objectives: {', '.join(everywhere)} asks at every token, and a task is answered once a row; "
                "set scope: targets"
            )
        return self

    @model_validator(mode="after")
    def _somebody_answers_variants(self) -> RunConfig:
        augment = self.task.augment if isinstance(self.task, TokenTask) else None
        if augment is not None and augment.answers == "teacher" and not any(o.needs().teacher for o in self.objectives):
            raise ValueError(
                "task.augment: variants have no labels, and no objective learns from a teacher; give one that does "
                "(soft_ce, logits_mse, ...), or set task.augment.answers: original"
            )
        return self

    @model_validator(mode="after")
    def _weights_come_to_something(self) -> RunConfig:
        ends = (1, self.steps, *(step for o in self.objectives if o.ramp for step in (o.ramp.to_step,)))
        if not any(sum(self.weights_at(step)) for step in ends):
            raise ValueError("objectives: all weights are 0, so nothing would be learnt")
        return self

    @model_validator(mode="after")
    def _teacher_can_give_what_is_asked(self) -> RunConfig:
        if self.teacher is not None:
            if self.data is not None and (why := self.teacher.cannot_read(self.data)):
                raise ValueError(f"teacher: {self.teacher.kind}: {why}")
            asked = {f"objectives: {o.label}": o.needs() for o in self.objectives if o.needs().teacher}
            asked["objectives"] = union_of_needs(list(asked.values()))
            for where, needs in asked.items():
                if why := self.teacher.cannot(needs):
                    raise ValueError(f"{where} and teacher: {self.teacher.kind} do not go together: {why}")
        return self

    @model_validator(mode="after")
    def _a_teacher_apart_is_asked(self) -> RunConfig:
        if not self.teacher_ranks:
            return self
        if self.task is not None:
            raise ValueError("teacher.placement: own_ranks is for pretraining; a task's teacher has no such")
        if not any(objective.needs().teacher for objective in self.objectives):
            raise ValueError("teacher.placement: own_ranks, and no objective asks the teacher; use replicated")
        return self

    @model_validator(mode="after")
    def _exchanged_rows_are_two(self) -> RunConfig:
        exchanging = [o.label for o in self.objectives if o.needs().again]
        if exchanging and self.batch.micro_size == 1:
            raise ValueError(
                f"objectives: {', '.join(exchanging)} exchanges states between rows of a micro-batch, and "
                "batch.micro_size is 1; set it to 2 at least"
            )
        return self

    @model_validator(mode="after")
    def _peers_are_listened_to_when_there(self) -> RunConfig:
        absent = getattr(self.teacher, "absent_until", 0)
        early = [o.label for o in self.objectives if absent and o.needs().teacher and o.weight_at(absent)]
        if early:
            raise ValueError(
                f"objectives: {', '.join(early)} would learn from a teacher that is not there until step {absent}; "
                f"give ramp: {{from_step: {absent}, to_step: {absent + 1}}}"
            )
        return self

    @model_validator(mode="after")
    def _gradients_can_be_shared_out(self) -> RunConfig:
        if self.log.gradient_shares_every_steps and self.engine.zero_stage == 3:
            raise ValueError(
                "log.gradient_shares_every_steps: at engine.zero_stage 3 no rank holds the weights; use stage 0, 1 or 2"
            )
        return self

    @model_validator(mode="after")
    def _objectives_are_named_apart(self) -> RunConfig:
        twice = [label for label, n in Counter(o.label for o in self.objectives).items() if n > 1]
        if twice:
            raise ValueError(f"objectives: {twice[0]!r} appears twice; give each a `name`")
        return self

    @model_validator(mode="after")
    def _teacher_is_there_when_needed(self) -> RunConfig:
        needing = [o.label for o in self.objectives if o.needs().teacher]
        if needing and self.teacher is None:
            raise ValueError(f"objectives: {', '.join(needing)} need a teacher, and `teacher` is empty")
        return self


_ASKED: dict[AnswerKind, str] = {
    "tokens": "to predict tokens, which is what `data` asks for",
    "label": "a task's classes",
    "value": "a task's numbers",
    "span": "a task's spans",
    "image": "a task's images",
    "choice": "a task's choices",
}
_LEARNS: dict[AnswerKind, str] = {
    "tokens": "hard_ce, soft_ce, ...",
    "label": "hard_ce, soft_ce and logits_mse with scope: targets, pkd, hidden_mse, ...",
    "value": "value_mse, logits_mse with scope: targets, pkd, hidden_mse, ...",
    "span": "span_ce, span_soft_ce, hidden_mse, ...",
    "image": "hard_ce; soft_ce, teacher_label and logits_mse with scope: targets; kd_compat",
    "choice": "hard_ce, soft_ce and logits_mse with scope: targets, pkd, hidden_mse, ...",
}


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
    _import_plugins(tree.get("plugins") or [])
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, RunConfig, where) from None


def dump(config: RunConfig) -> dict[str, Any]:
    """The whole config, defaults included, as plain values."""
    return config.model_dump(mode="json")


def _import_plugins(names: Any) -> None:
    if not isinstance(names, list) or not names:
        return
    for name in names:
        try:
            importlib.import_module(str(name))
        except ImportError as error:
            raise UserError(f"plugins: cannot import {name!r}", str(error), "put its folder on PYTHONPATH") from None
    # the inner ones first: a section keeps the schemas it was built with
    sections: list[type[Strict]] = [*kinds(Objective).values(), *kinds(Task).values(), DataConfig, RunConfig]
    for section in sections:
        section.model_rebuild(force=True)
