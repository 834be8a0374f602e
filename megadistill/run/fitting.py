"""Do models, data and objectives fit together? Told from their sizes, so also before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.types import Dims, Needs, union_of_needs
from megadistill.data.index import INDEX
from megadistill.data.masking import Vocabulary
from megadistill.data.settings import checked_index
from megadistill.data.tokenization import Tokenizer, load_tokenizer
from megadistill.models.heads import TaskHead, output_layers
from megadistill.models.images import ImageModel, refuse_misfits
from megadistill.models.signals import LanguageModel
from megadistill.objectives.base import build_loss, needs_of
from megadistill.run.config import RunConfig
from megadistill.run.cross import oddities
from megadistill.run.empty import empty
from megadistill.run.inputs import away, collected, is_here, look
from megadistill.run.trained import located, teacher_of, tokenizer_of


def misfits(config: RunConfig) -> tuple[list[UserError], list[str]]:
    """What `build` would refuse, as far as config.json, tokenizer files and a task's data that are here already tell.
    Reads no weights and asks no network.

    Returns:
        the problems, and remarks: what could not be compared, and what is hardly meant or should be known.
    """
    remarks, problems = list(oddities(config)), list(uninstalled(config))
    found, head = look(config, remarks)
    problems += found
    tokenizer, known = None, True
    if config.words is not None and is_here(config.words.tokenizer):
        known = False
        section = "data" if config.task is None else "task"
        with collected(problems, f"{section}.tokenizer"):
            tokenizer, known = load_tokenizer(config.words.tokenizer), True
    elif config.words is not None:
        remarks.append(f"not compared with the tokenizer {away(config.words.tokenizer)}")
    if tokenizer is not None and config.data is not None:
        special = tokenizer.special
        words = Vocabulary(tokenizer.vocabulary_size, special.mask, special.ids(), None, tokenizer.opens_word)
        with collected(problems):
            config.data.targets.check(words)
        for corpus in config.data.corpora:
            if (config.data.dir / corpus.name / "train" / INDEX).exists():
                others: list[UserError] = []
                with collected(others):
                    checked_index(config.data, corpus, "train", tokenizer)
                remarks += [f"{other.what}, and `prepare` makes it anew: {other.why}" for other in others]
    for who, found_part in (("teacher", partial(teacher_of, config)), ("student", partial(located, config.student))):
        paths = None
        with collected(problems):
            paths = part.paths() if (part := found_part()) is not None else []
        known = known and paths is not None
        for path in paths or ():
            if not is_here(path):
                remarks.append(f"not compared with the {who} {away(path)}")
                known = False
            elif tokenizer is not None:
                with collected(problems):
                    refuse_other_tokenizer(config, tokenizer, path, who)
    if known and (config.task is None or head is not None):
        with collected(problems):
            problems += _sizes(config, tokenizer, head, remarks)
    return list({str(problem): problem for problem in problems}.values()), remarks


def _sizes(
    config: RunConfig, tokenizer: Tokenizer | None, head: TaskHead | None, remarks: list[str]
) -> Iterator[UserError]:
    special = tokenizer.special.as_dict() if tokenizer is not None else {}
    vocabulary = tokenizer.vocabulary_size if tokenizer is not None else None
    models = empty(config, vocabulary, special, torch.device("cpu"), head)
    student, teachers = models.student, models.teachers
    if student is None:
        remarks.append(f"the sizes of student ({config.student.kind}) are not known before it is built")
        return
    if head is not None:
        found: list[UserError] = []
        with collected(found):
            check_answers(head, student, teachers if config.distils else ())
        if isinstance(student, ImageModel):
            with collected(found):
                refuse_misfits(student, [model for model in teachers if isinstance(model, ImageModel)], head.names)
        yield from found
    yield from unfit(config, student, teachers, models.dims, vocabulary)
    remarks += padding_of(teachers, student)
    needed: list[tuple[str, Needs]] = []
    for number, objective in enumerate(config.objectives):
        try:
            with torch.device("meta"):
                needs = needs_of(objective, build_loss(objective, number, student.dims, models.dims))
        except UserError as error:
            yield error
            continue
        at = f"objectives.{number} ({objective.label})"
        needed.append((at, needs))
        if config.teacher is not None and needs.teacher and (why := config.teacher.cannot(needs)):
            yield UserError(f"{at}: teacher ({config.teacher.kind}) cannot serve it", why)
    yield from _attention(config, student, teachers, needed)


def _attention(
    config: RunConfig, student: LanguageModel, teachers: Sequence[LanguageModel], needed: Sequence[tuple[str, Needs]]
) -> Iterator[UserError]:
    """What a pass without weights tells of how the models attend."""
    whole = union_of_needs([needs for _, needs in needed])
    sides = [("student", student, whole.student_attention)]
    if whole.teacher:  # of several, the first gives states and attention
        asked = (whole.teacher_attention, *(frozenset() for _ in teachers[1:]))
        sides += [("teacher", model, layers) for model, layers in zip(teachers, asked, strict=False)]
    for who, model, layers in sides:
        try:
            ahead = model.try_empty(layers)
        except UserError as error:
            asking = [at for at, needs in needed if getattr(needs, f"{who}_attention")]
            at = ", ".join(asking + ["data.attention"] * (model.attends == "document"))
            yield UserError(f"{at}: the {who}'s {error.what}" if at else f"{who}: {error.what}", error.why, error.fix)
            continue
        if config.task is None and ahead is not None:
            found: list[UserError] = []
            with collected(found):
                refuse_direction(config, who, model, ahead)
            yield from found


def uninstalled(config: RunConfig) -> Iterator[UserError]:
    """What only training needs, and this machine does not know: services to log to, the storage to copy to. A run's
    config must be readable without."""
    for name in config.log.services:
        if find_spec(name) is None:
            yield UserError(f"log.services: {name} is not installed", "", f"pip install megadistill[{name}]")
    if (url := config.checkpoint.copy_to) is not None:
        import fsspec  # type: ignore[import-untyped]

        try:
            fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))
        except (ImportError, ValueError) as error:
            fix = "install what it names, or give another url"
            yield UserError(f"checkpoint.copy_to: {url} cannot be written to", str(error), fix)


def unfit(
    config: RunConfig,
    student: LanguageModel,
    teachers: Sequence[LanguageModel],
    theirs: Dims | None,
    vocabulary: int | None,
) -> Iterator[UserError]:
    """Compare the sizes of the models with each other and with the data.

    Args:
        teachers: the models of the teacher, if there are any.
        theirs: what they are together; None without a teacher.
        vocabulary: how many entries the tokenizer has; None: not known.
    """
    ours, section = student.dims, "data" if config.task is None else "task"
    models = [("student", student), *(("teacher", model) for model in teachers)]
    sizes = [(who, model.num_tokens) for who, model in models]
    if theirs is not None and not teachers and config.task is None:
        sizes.append(("teacher", theirs.vocabulary))
    for who, size in sizes:
        if vocabulary is not None and size < vocabulary:
            yield UserError(
                f"{section}.tokenizer: it has {vocabulary:,} entries, and the {who}'s vocabulary only {size:,}",
                "",
                "take the teacher's tokenizer, and a student whose vocab_size is the tokenizer's",
            )
    for who, model in models:
        limit = _positions(model)
        if limit is not None and limit < (length := config.sequence_length):
            yield UserError(
                f"{section}.sequence_length: it is {length}, and the {who} knows only {limit} positions",
                "",
                f"set it to {limit} at most, or take a {who} with more positions",
            )
    compares = [f"objectives.{n} ({o.label})" for n, o in enumerate(config.objectives) if o.needs().teacher]
    known = theirs is not None and compares and teachers and config.task is None
    if theirs is not None and known and theirs.vocabulary < ours.vocabulary:
        yield UserError(
            f"{', '.join(compares)}: the teacher's vocabulary has {theirs.vocabulary:,} entries, the student's "
            f"{ours.vocabulary:,}",
            "they cannot be compared entry by entry",
            "leave vocab_size out of student.config, or set it to the tokenizer's",
        )
    headed = [f"objectives.{n}.head ({o.label})" for n, o in enumerate(config.objectives) if o.head is not None]
    if headed and len(output_layers(student.hf)) == 1:
        yield UserError(
            f"{', '.join(headed)}: the student ({type(student.hf).__name__}) has only one head",
            "",
            "leave `head` out, or use student.architecture: deit for images, which has two",
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


def _positions(model: LanguageModel) -> int | None:
    """How long a row it can read; None: no limit is known."""
    limit: Any = getattr(model.hf.config, "max_position_embeddings", None)
    table: Any = getattr(getattr(model.hf.base_model, "embeddings", None), "position_embeddings", None)
    if limit is not None and getattr(table, "padding_idx", None) is not None:
        limit -= table.padding_idx + 1  # RoBERTa counts positions from its padding id
    return limit if isinstance(limit, int) else None


def check_answers(head: TaskHead, student: LanguageModel, teachers: Sequence[LanguageModel]) -> None:
    """A model that was trained on something else would answer with noise.

    Raises:
        UserError: a model whose head is not the task's.
    """
    for who, model in (("student", student), *(("teacher", teacher) for teacher in teachers)):
        kind = model.answers
        if kind == head.kind == "choice":  # who scores one text scores as many as there are
            model.hf.config.num_labels = head.outputs
        outputs = model.dims.vocabulary
        if kind != head.kind or outputs != head.outputs:
            raise UserError(
                f"{who}: {type(model.hf).__name__} has no head for this task",
                f"it answers with {_ANSWERS[kind].format(outputs)}, and the task asks for "
                f"{_ANSWERS[head.kind].format(head.outputs)}",
                "fine-tune it on the task first: a run with `task`, this model in student.init, and no teacher",
            )


_ANSWERS = {
    "tokens": "{:,} tokens",
    "label": "{} classes",
    "value": "a number",
    "span": "a span of the text",
    "image": "{} classes of images",
    "choice": "one of {} texts",
}


def refuse_direction(config: RunConfig, who: str, model: LanguageModel, ahead: bool) -> None:
    """A model that reads ahead finds the next token in its input; one that does not cannot use what follows a mask.

    Args:
        ahead: whether it does.

    Raises:
        UserError: it must not, or should.
    """
    name, targets = type(model.hf).__name__, config.text.targets.kind
    if targets == "clm" and ahead:
        raise UserError(
            f"data.targets: clm, and the {who} ({name}) sees the tokens that it has to predict",
            "its states at a token change with the tokens after it",
            f"use a causal {who}, such as gpt2 (or is_decoder: true in its config), or data.targets: {{kind: mlm}}",
        )
    if targets == "mlm" and not ahead:
        raise UserError(
            f"data.targets: mlm, and the {who} ({name}) sees only the tokens before a masked one",
            "its states at a token do not change with the tokens after it",
            f"use a bidirectional {who}, such as bert, or data.targets: {{kind: clm}}",
        )
