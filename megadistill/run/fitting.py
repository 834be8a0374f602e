"""Do models, data and objectives fit together? Told from their sizes, so also before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.files import shipped
from megadistill.core.types import Dims
from megadistill.data.tokenization import Tokenizer, load_tokenizer
from megadistill.models.heads import output_layers
from megadistill.models.loading import load_empty
from megadistill.models.signals import LanguageModel
from megadistill.objectives.base import needs_of
from megadistill.run.config import RunConfig
from megadistill.run.trained import located, teacher_of, tokenizer_of
from megadistill.tasks.base import TokenTask


def misfits(config: RunConfig) -> tuple[list[UserError], list[str]]:
    """What `build` would refuse, as far as config.json and tokenizer files that are here already tell. Reads no weights
    and asks no network.

    Returns:
        the problems, and remarks: what could not be compared, and what an objective's author wants to be known.
    """
    remarks = [f"objectives: {o.label}: {said}" for o in config.objectives if (said := o.remark())]
    paths = teacher.paths() if (teacher := teacher_of(config)) is not None else []
    absent = [path for path in paths if not _is_here(path)]
    remarks += [f"not compared with the teacher {path}: it is not here yet" for path in absent]
    tokenizer = None
    if config.words is not None and _is_here(config.words.tokenizer):
        tokenizer = load_tokenizer(config.words.tokenizer)
    elif config.words is not None:
        remarks.append(f"not compared with the tokenizer {config.words.tokenizer}: it is not here yet")
    problems: list[UserError] = []
    with _collected(problems):
        refuse_uninstalled(config)
    if (augment := config.task.augment if isinstance(config.task, TokenTask) else None) is not None:
        away = [f"task.augment.{name} {path}" for name, path in augment.sources().items() if not _is_here(str(path))]
        remarks += [f"not looked at: {what} is not here yet" for what in away]
        with _collected(problems):
            augment.check()
    with _collected(problems):
        for path in paths:
            if tokenizer is not None and path not in absent:
                refuse_other_tokenizer(config, tokenizer, path)
    if not absent and config.task is None:  # a task's models are made from the task's data
        with _collected(problems):
            problems += _sizes(config, tokenizer, [load_empty(path) for path in paths], remarks)
    return problems, remarks


def _sizes(
    config: RunConfig, tokenizer: Tokenizer | None, teachers: Sequence[LanguageModel], remarks: list[str]
) -> Iterator[UserError]:
    first = teachers[0] if teachers else None
    special = tokenizer.special.as_dict() if tokenizer is not None else {}
    vocabulary = tokenizer.vocabulary_size if tokenizer is not None else first.dims.vocabulary if first else 30_522
    causal = config.text.targets.kind == "clm"
    student = located(config.student).empty(first, vocabulary, causal, special)
    if student is None:
        return
    for model in (student, *teachers):
        model.attends = config.attention
    # a teacher without a model of its own comes from the student
    theirs = None if config.teacher is None else (first or student).dims
    found: list[UserError] = []
    with _collected(found):
        refuse_unfit(config, student, teachers, theirs, vocabulary)
    yield from found
    remarks += padding_of(teachers, student)
    for objective in config.objectives:
        try:
            with torch.device("meta"):
                needs = needs_of(objective, objective.build(student.dims, theirs))
        except UserError as error:
            yield error
            continue
        if config.teacher is not None and needs.teacher and (why := config.teacher.cannot(needs)):
            yield UserError(f"objectives: {objective.label}: teacher: {config.teacher.kind} cannot serve it", why)


def _is_here(path: str) -> bool:
    """Whether a model or tokenizer can be looked at without network."""
    return Path(shipped(path)).expanduser().exists()


@contextmanager
def _collected(problems: list[UserError]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.append(error)


def refuse_uninstalled(config: RunConfig) -> None:
    """What only training needs: a run's config must be readable where it is not.

    Raises:
        UserError: a service to log to, or the storage to copy to, is not known to this machine.
    """
    for name in config.log.services:
        if find_spec(name) is None:
            raise UserError(f"log.services: {name} is not installed", "", f"pip install megadistill[{name}]")
    if (url := config.checkpoint.copy_to) is not None:
        import fsspec  # type: ignore[import-untyped]

        try:
            fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))
        except (ImportError, ValueError) as error:
            fix = "install what it names, or give another url"
            raise UserError(f"checkpoint.copy_to: {url} cannot be written to", str(error), fix) from None


def refuse_unfit(
    config: RunConfig, student: LanguageModel, teachers: Sequence[LanguageModel], theirs: Dims | None, vocabulary: int
) -> None:
    """Compare the sizes of the models with each other and with the data.

    Args:
        teachers: the models of the teacher, if there are any.
        theirs: what they are together; None without a teacher.
        vocabulary: how many entries the tokenizer has.

    Raises:
        UserError: names everything that does not fit.
    """
    ours = student.dims
    problems = [
        _too_small("student", student.num_tokens, vocabulary),
        _too_short("student", student, config.sequence_length),
    ]
    if theirs is not None:
        sizes = [model.num_tokens for model in teachers] or [theirs.vocabulary]
        problems += [_too_small("teacher", size, vocabulary) for size in sizes if config.task is None or teachers]
        problems += [_too_short("teacher", model, config.sequence_length) for model in teachers]
        compares = [o.label for o in config.objectives if o.needs().teacher]
        if compares and teachers and theirs.vocabulary < ours.vocabulary:
            problems.append(
                f"the teacher's vocabulary has {theirs.vocabulary:,} entries, the student's {ours.vocabulary:,}: "
                f"{', '.join(compares)} cannot compare them entry by entry"
            )
    headed = [o.label for o in config.objectives if o.head is not None]
    if headed and len(output_layers(student.hf)) == 1:
        problems.append(f"{', '.join(headed)} names a head, and the student ({type(student.hf).__name__}) has only one")
    found = [p for p in problems if p]
    if found:
        raise UserError(
            "the models and the data do not fit together",
            "\n  ".join(found),
            "use the teacher's tokenizer (data.tokenizer) and its sizes for the student",
        )


def padding_of(teachers: Sequence[LanguageModel], student: LanguageModel) -> list[str]:
    """What is to be known of teachers whose vocabulary is padded further than the student's."""
    ours = student.dims.vocabulary
    return [
        f"the teacher's vocabulary has {model.dims.vocabulary:,} entries, the student's {ours:,}: its last "
        f"{model.dims.vocabulary - ours:,} are padding, and ignored"
        for model in teachers
        if student.answers == model.answers == "tokens" and model.dims.vocabulary > ours
    ]


def refuse_other_tokenizer(config: RunConfig, ours: Tokenizer, path: str, who: str = "teacher") -> None:
    """Ids that mean other words to a model would be learnt as if they were right: nothing else would notice.

    Args:
        path: of the model: a run, a folder or a hub name.
        who: it is.

    Raises:
        UserError: it has another tokenizer.
    """
    assert config.words is not None
    path = tokenizer_of(path)
    if path == config.words.tokenizer:
        return
    try:
        theirs = load_tokenizer(path)
    except UserError as error:
        log.get().warning(f"not checked that the {who} was trained with {config.words.tokenizer}: {error.what}")
        return
    difference = _difference(ours, theirs)
    section, again = ("data", " and run `megadistill prepare`") if config.task is None else ("task", "")
    if difference:
        raise UserError(
            f"the {who} was trained with another tokenizer than the data's",
            difference,
            f"set {section}.tokenizer to {path}{again}, or take a {who} of {config.words.tokenizer}",
        )


def _difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """Where two tokenizers' ids mean different things; empty where they agree, whatever files they came from."""
    data, teacher = (tokenizer.backend.get_vocab(with_added_tokens=True) for tokenizer in (ours, theirs))
    different = sorted(token for token in data.keys() | teacher.keys() if data.get(token) != teacher.get(token))
    if different:
        token = different[0]
        return (
            f"{len(different):,} tokens have another id or none, such as {token!r}: "
            f"{data.get(token)} in the data, {teacher.get(token)} in the model"
        )
    if ours.special != theirs.special:
        return f"special tokens: {ours.special.as_dict()} in the data, {theirs.special.as_dict()} in the model"
    return ""


def _too_small(who: str, size: int, vocabulary: int) -> str:
    if size >= vocabulary:
        return ""
    return f"the tokenizer has {vocabulary:,} entries, and the {who}'s vocabulary only {size:,}"


def _too_short(who: str, model: LanguageModel, length: int) -> str:
    limit: Any = getattr(model.hf.config, "max_position_embeddings", None)
    table: Any = getattr(getattr(model.hf.base_model, "embeddings", None), "position_embeddings", None)
    if limit is not None and getattr(table, "padding_idx", None) is not None:
        limit -= table.padding_idx + 1  # RoBERTa counts positions from its padding id
    if limit is None or length <= limit:
        return ""
    return f"data.sequence_length is {length}, and the {who} knows only {limit} positions"
