"""A trained student as ONNX, in fp32 or with int8 weights, checked against torch on real text before it is there."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.files import fsync_directory, write_json
from megadistill.core.types import Batch
from megadistill.data.tokenization import load_tokenizer
from megadistill.export.card import card
from megadistill.export.check import compare, scores
from megadistill.export.hf import write_tokenizer
from megadistill.export.plain import inputs, plain
from megadistill.models.images import ImageModel
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.run.build import held_out
from megadistill.run.config import RunConfig
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import config_of, trained

CHECK = "check.json"
"""In the folder: what was compared, and what it said."""

ROWS = 256
"""Rows of real text, at most, that torch and ONNX both answer."""

TOLERATED = {"onnx": 1e-3, "onnx-int8": 0.3}
"""Largest relative L2 error of the answers around their mean: rounding in fp32, and of int8 weights and activations."""


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
    config = config_of(directory)
    output = output or directory.export / to
    if output.exists() and not (output / CHECK).exists():
        raise UserError(f"{output} exists and is no export", fix="give another --output")
    model = load_pretrained(str(found.path / "student")).eval()
    model.attends = config.attends
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
        facts["bytes_torch"] = (found.path / "student" / "model.safetensors").stat().st_size
        facts["scores"] = scores(config, model, temporary / "model.onnx", batches)
        model.hf.config.save_pretrained(temporary)
        if isinstance(model, ImageModel):
            model.processor.save_pretrained(temporary)
        elif config.words is not None:
            tokenizer = load_tokenizer(config.words.tokenizer)
            write_tokenizer(tokenizer, config.words.sequence_length, temporary, model.typed)
        shutil.copy(directory.resolved_config, temporary / "distillation.yaml")
        (temporary / "README.md").write_text(card(config, found.step, directory.evaluation, facts), encoding="utf-8")
        write_json(temporary / CHECK, facts)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    fsync_directory(output.parent)
    return output


def write(model: LanguageModel, batch: Batch, path: Path, int8: bool) -> None:
    """The ONNX file alone; `batch` shows what inputs look like, of any number of rows and length."""
    image = isinstance(model, ImageModel)
    sizes = {0: torch.export.Dim("rows", min=1)}
    if not image:
        sizes[1] = torch.export.Dim("length", min=2, max=_longest(model))
    given = inputs(model, batch)
    example = tuple(torch.cat([part, part])[:2] for part in given.values())
    with _quiet():
        program = torch.onnx.export(
            plain(model),
            example,
            dynamo=True,
            verbose=False,
            dynamic_shapes=dict.fromkeys(given, sizes),
            input_names=list(given),
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


def _require() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        fix = 'pip install "megadistill[onnx]"'
        raise UserError("--to onnx needs packages that are not installed", str(error), fix) from None
