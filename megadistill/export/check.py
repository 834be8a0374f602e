"""Does an exported model answer as torch does, how fast, and what does the difference cost in the run's own scores?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megadistill.core.types import AnswerKind, Batch
from megadistill.export.plain import inputs, plain
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig
from megadistill.tasks.answering import answered

Answer = Callable[[Batch], NDArray[np.float32]]
"""All answers to a batch: [rows, classes], or [rows, positions, classes]."""


def compare(model: LanguageModel, path: Path, batches: Sequence[Batch]) -> dict[str, Any]:
    """Both models' answers at attended positions, and how long they take row by row.

    Returns:
        relative_error: |onnx - torch| / |torch - its mean|, L2 over everything; max_difference; agreement_top1 where
        answers are classes or positions; seconds at batch 1 of the first batch's rows, torch and ONNX, on `threads`
        threads both; bytes of the ONNX file.
    """
    by_onnx, by_torch = answering(model, path), answering(model, None)
    number, agreeing, off, most, squares = 0, 0, 0.0, 0.0, 0.0
    total: NDArray[np.float64] | float = 0.0
    for batch in _pieces(model, batches):
        ours, theirs = (_attended(answer(batch), batch, model.answers) for answer in (by_onnx, by_torch))
        between = ours.astype(np.float64) - theirs
        number, agreeing = number + len(ours), agreeing + int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        off, most = off + float(np.square(between).sum()), max(most, float(np.abs(between).max()))
        total, squares = (
            total + theirs.sum(0, dtype=np.float64),
            squares + float(np.square(theirs, dtype=np.float64).sum()),
        )
    around = math.sqrt(max(squares - float(np.square(total).sum()) / number, 0.0))
    facts: dict[str, Any] = {
        "num_rows": sum(len(b.ids) for b in batches),
        "relative_error": math.sqrt(off) / max(around, 1e-12),
        "max_difference": most,
        "threads": torch.get_num_threads(),
        "bytes": path.stat().st_size,
    }
    if model.answers in ("tokens", "label", "image"):
        facts["agreement_top1"] = agreeing / number
    singles = batches[0].split(1)
    facts["seconds_torch"], facts["seconds_onnx"] = (_seconds(answer, singles) for answer in (by_torch, by_onnx))
    return facts


def answering(model: LanguageModel, path: Path | None) -> Answer:
    """What answers batches: an ONNX file of the model, on as many threads as torch has; None: torch itself."""
    if path is None:
        module = plain(model)

        @torch.no_grad()
        def by_torch(batch: Batch) -> NDArray[np.float32]:
            return np.asarray(module(*inputs(model, batch).values()).numpy())

        return by_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def by_onnx(batch: Batch) -> NDArray[np.float32]:
        given = inputs(model, batch)
        return np.asarray(session.run(None, {name: given[name].numpy() for name in names})[0])

    return by_onnx


def scores(
    config: RunConfig, model: LanguageModel, path: Path, batches: Sequence[Batch]
) -> dict[str, dict[str, float]]:
    """What a run is judged by, of torch's answers and of ONNX's: a task's metrics on all of its first dev part; a
    language model's loss, in nats over the targets of `batches`.

    Returns:
        name -> {"torch": ..., "onnx": ...}
    """
    found = {}
    for name, answer in (("torch", answering(model, None)), ("onnx", answering(model, path))):
        found[name] = _loss(answer, _pieces(model, batches)) if config.task is None else _metrics(config, answer)
    return {key: {name: float(values[key]) for name, values in found.items()} for key in found["torch"]}


def _metrics(config: RunConfig, answer: Answer) -> dict[str, float]:
    assert config.task is not None
    opened = config.task.open(config.task.dev_parts[0])
    choices = opened.rows.choices

    def of_examples(batch: Batch) -> NDArray[np.float32]:
        return answer(batch) if choices == 1 else answer(batch).reshape(-1, choices)

    return opened.score(answered(opened.rows, of_examples))[0]


def _pieces(model: LanguageModel, batches: Sequence[Batch]) -> Iterator[Batch]:
    """The batches; row by row where a row's answers are logits of a whole vocabulary at each position."""
    for batch in batches:
        yield from batch.split(1) if model.answers == "tokens" else [batch]


def _loss(answer: Answer, batches: Iterable[Batch]) -> dict[str, float]:
    total, number = 0.0, 0
    for batch in batches:
        rows = batch.targets
        logits = torch.from_numpy(answer(batch)).flatten(0, 1)[rows].double()
        total += float(torch.nn.functional.cross_entropy(logits, batch.labels.flatten()[rows], reduction="sum"))
        number += len(rows)
    return {"loss": total / max(number, 1)}


def _attended(answers: NDArray[np.float32], batch: Batch, asked: AnswerKind) -> NDArray[np.float32]:
    """[answers, classes]: those of padding left out."""
    return answers if asked in ("label", "value", "choice", "image") else answers[batch.mask.numpy()]


def _seconds(answer: Answer, batches: Sequence[Batch]) -> float:
    answer(batches[0])  # warm up
    started = time.perf_counter()
    for batch in batches:
        answer(batch)
    return time.perf_counter() - started
