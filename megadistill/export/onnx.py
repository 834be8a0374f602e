"""A trained student as ONNX, in fp32 or with int8 weights, checked against torch on real text before it is there."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.files import fsync_directory, write_json
from megadistill.core.types import AnswerKind, Batch
from megadistill.data.tokenization import load_tokenizer
from megadistill.export.card import card
from megadistill.export.hf import write_tokenizer
from megadistill.models.images import ImageModel
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.run.build import held_out
from megadistill.run.config import RunConfig, check
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import trained

CHECK = "check.json"
"""In the folder: what was compared, and what it said."""

ROWS = 256
"""Rows of real text, at most, that torch and ONNX both answer."""

TOLERATED = {"onnx": 1e-3, "onnx-int8": 0.3}
"""Largest relative L2 error of the answers around their mean: rounding in fp32, and of int8 weights and activations."""

Answer = Callable[[Batch], NDArray[np.float32]]
"""All answers to a batch: [rows, classes], or [rows, positions, classes]."""


def export(run: Path, to: str, output: Path | None = None) -> Path:
    """Write model.onnx, config, tokenizer or image processor, a card and `CHECK`.

    Args:
        to: onnx or onnx-int8 (weights of products as int8, activations quantised while it runs).
        output: where to; `<run>/export/<to>` when not given. It appears whole or not at all.

    Raises:
        UserError: the run has no checkpoint, its data is not there, the ONNX packages are not installed, or the
            exported model answers otherwise than torch.
    """
    _require()
    directory = RunDirectory(run)
    found = trained(directory)
    tree = yaml.safe_load(directory.resolved_config.read_text(encoding="utf-8"))
    config = check(tree, str(directory.resolved_config))
    output = output or directory.export / to
    if output.exists() and not (output / CHECK).exists():
        raise UserError(f"{output} exists and is no export", fix="give another --output")
    model = load_pretrained(str(found.path / "student")).eval()
    batches = _real_rows(config)
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(model, batches[0], temporary / "model.onnx", int8=to == "onnx-int8")
        facts = compare(model, temporary / "model.onnx", batches)
        if not facts["relative_error"] <= TOLERATED[to]:
            raise UserError(
                f"the exported model answers otherwise than torch: relative error {facts['relative_error']:.2g}",
                f"over {facts['num_rows']} rows of the run's own data; {TOLERATED[to]} is tolerated",
                "export --to onnx" if to == "onnx-int8" else "report it with the run's config",
            )
        model.hf.config.save_pretrained(temporary)
        if isinstance(model, ImageModel):
            model.processor.save_pretrained(temporary)
        elif config.words is not None:
            write_tokenizer(load_tokenizer(config.words.tokenizer), config.words.sequence_length, temporary)
        shutil.copy(directory.resolved_config, temporary / "distillation.yaml")
        (temporary / "README.md").write_text(card(tree, found.step, directory.evaluation), encoding="utf-8")
        facts["bytes_torch"] = (found.path / "student" / "model.safetensors").stat().st_size
        write_json(temporary / CHECK, facts)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    fsync_directory(output.parent)
    return output


def compare(model: LanguageModel, path: Path, batches: Sequence[Batch]) -> dict[str, Any]:
    """Both models' answers at attended positions, and how long they take row by row.

    Returns:
        relative_error: |onnx - torch| / |torch - its mean|, L2 over everything; max_difference; agreement_top1 where
        answers are classes or positions; seconds at batch 1 of the first batch's rows, torch and ONNX, on `threads`
        threads both; bytes of the ONNX file.
    """
    by_onnx, by_torch = answering(model, path), answering(model, None)
    ours = np.concatenate([_answered(by_onnx(b), b, model.answers) for b in batches])
    theirs = np.concatenate([_answered(by_torch(b), b, model.answers) for b in batches])
    around = float(np.linalg.norm(theirs - theirs.mean(0)))
    facts: dict[str, Any] = {
        "num_rows": sum(len(b.ids) for b in batches),
        "relative_error": float(np.linalg.norm(ours - theirs)) / max(around, 1e-12),
        "max_difference": float(np.abs(ours - theirs).max()),
        "threads": torch.get_num_threads(),
        "bytes": path.stat().st_size,
    }
    if model.answers in ("tokens", "label", "image"):
        facts["agreement_top1"] = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
    singles = batches[0].split(1)
    facts["seconds_torch"], facts["seconds_onnx"] = (_seconds(answer, singles) for answer in (by_torch, by_onnx))
    return facts


def answering(model: LanguageModel, path: Path | None) -> Answer:
    """What answers batches: an ONNX file of the model, on as many threads as torch has; None: torch itself."""
    if path is None:
        plain = _plain(model)

        @torch.no_grad()
        def by_torch(batch: Batch) -> NDArray[np.float32]:
            return plain(*_inputs(model, batch).values()).numpy()

        return by_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def by_onnx(batch: Batch) -> NDArray[np.float32]:
        inputs = _inputs(model, batch)
        return np.asarray(session.run(None, {name: inputs[name].numpy() for name in names})[0])

    return by_onnx


class _Plain(nn.Module):
    """The model as inference calls it: tensors in, one tensor out ([B, C], or [B, L, V], of spans [B, L, 2]; of choices
    [B, 1], the score of each text)."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.hf, self.span, self.choice = model.hf, model.answers == "span", model.answers == "choice"
        self.typed = getattr(model.hf.config, "type_vocab_size", 0) > 1 and model.answers != "tokens"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.typed:
            inputs["token_type_ids"] = token_type_ids
        if self.choice:
            inputs = {name: value.unsqueeze(1) for name, value in inputs.items()}
        answer = self.hf(**inputs)
        return torch.stack([answer.start_logits, answer.end_logits], -1) if self.span else answer.logits


class _PlainImage(nn.Module):
    """Likewise of an image model, whose images went through its processor: [B, 3, S, S] -> [B, C]."""

    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.hf = model.hf

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.hf(pixel_values=pixel_values).logits
        return logits


def _plain(model: LanguageModel) -> nn.Module:
    return _PlainImage(model) if isinstance(model, ImageModel) else _Plain(model)


def _inputs(model: LanguageModel, batch: Batch) -> dict[str, Tensor]:
    """By the names of the plain model's arguments, in their order."""
    if isinstance(model, ImageModel):
        assert model.view is not None
        assert batch.pixels is not None
        return {"pixel_values": model.view(batch.pixels)}
    segments = (batch.segments - 1).clamp(min=0)
    return {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "token_type_ids": segments}


def _answered(answers: NDArray[np.float32], batch: Batch, asked: AnswerKind) -> NDArray[np.float32]:
    """[answers, classes]: those of padding left out."""
    return answers if asked in ("label", "value", "choice", "image") else answers[batch.mask.numpy()]


def write(model: LanguageModel, batch: Batch, path: Path, int8: bool) -> None:
    """The ONNX file alone; `batch` shows what inputs look like, of any number of rows and length."""
    image = isinstance(model, ImageModel)
    sizes = {0: torch.export.Dim("rows", min=1)}
    if not image:
        sizes[1] = torch.export.Dim("length", min=2, max=_longest(model))
    inputs = _inputs(model, batch)
    example = tuple(torch.cat([part, part])[:2] for part in inputs.values())
    with _quiet():
        program = torch.onnx.export(
            _plain(model),
            example,
            dynamo=True,
            verbose=False,
            dynamic_shapes=dict.fromkeys(inputs, sizes),
            input_names=list(inputs),
            output_names=["logits"],
        )
    assert program is not None
    program.save(str(path))
    if int8:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        whole = onnx.load(path)
        del whole.graph.value_info[:]  # shapes from before constants were folded, which the quantiser would trust
        only = ["MatMul"] if image else None  # ONNX Runtime runs no convolution with int8 weights on a CPU
        with _quiet():
            quantize_dynamic(whole, path, op_types_to_quantize=only, weight_type=QuantType.QInt8, per_channel=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporter and quantiser say by the dozen: of deprecations of theirs, packages not needed, advice."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _longest(model: LanguageModel) -> int:
    """Positions that it knows; RoBERTa's table has two more."""
    known = getattr(model.hf.config, "max_position_embeddings", 4096)
    return int(known) - (2 if model.hf.config.model_type in ("roberta", "xlm-roberta") else 0)


def _real_rows(config: RunConfig) -> list[Batch]:
    return list(held_out(config).batches(8, config.seed, World(), max_rows=ROWS))


def _seconds(answer: Answer, batches: Sequence[Batch]) -> float:
    answer(batches[0])  # warm up
    started = time.perf_counter()
    for batch in batches:
        answer(batch)
    return time.perf_counter() - started


def _require() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        fix = 'pip install "megadistill[onnx]"'
        raise UserError("--to onnx needs packages that are not installed", str(error), fix) from None
