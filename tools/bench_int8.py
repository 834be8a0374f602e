"""How much faster does a student answer as int8 ONNX than as fp32 torch, at batch 1 on the CPU?

    python tools/bench_int8.py --glue FOLDER --tokenizer FOLDER [--rows 200] [--repeats 5] [--threads N] [--json]

A sequence classifier of DistilBERT-base's shapes with random weights, exported as `megadistill export` does, answers
pairs of STS-B's dev set one at a time (padded to nothing), as DistilBERT's paper timed inference. torch, ONNX and int8
ONNX take turns, so that a change of the machine's pace meets all three; ratios are of one round each. FOLDER of --glue
holds STS-B, that of --tokenizer BERT's vocab.txt. The last line of --json is one object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megadistill.core.types import Batch  # noqa: E402
from megadistill.data.tokenization import load_tokenizer  # noqa: E402
from megadistill.export.check import Answer, answering, compare  # noqa: E402
from megadistill.export.onnx import write  # noqa: E402
from megadistill.models.loading import wrapped  # noqa: E402
from megadistill.models.signals import LanguageModel  # noqa: E402
from megadistill.tasks.glue import GlueTask  # noqa: E402


def model(words: int, layers: int, width: int) -> LanguageModel:
    """DistilBERT-base unless told otherwise; a head of width 64."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"n_layers": layers, "dim": width, "n_heads": max(width // 64, 1), "hidden_dim": 4 * width}
    hf = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=words, **sizes))
    return wrapped(hf.eval())


def pairs(glue: Path, tokenizer: str, number: int) -> list[Batch]:
    """Single rows from all over STS-B's dev set."""
    task = GlueTask(kind="glue", name="stsb", folder=glue, tokenizer=tokenizer)
    rows = task.open("dev").rows
    chosen = np.linspace(0, len(rows.lengths) - 1, min(number, len(rows.lengths))).astype(np.int64)
    return [rows.take(np.array([row])) for row in chosen]


def seconds(answer: Answer, batches: list[Batch]) -> float:
    """Of one answer, on the mean."""
    started = time.perf_counter()
    for batch in batches:
        answer(batch)
    return (time.perf_counter() - started) / len(batches)


def measure(student: LanguageModel, batches: list[Batch], folder: Path, repeats: int) -> dict[str, Any]:
    """Milliseconds of an answer: medians over rounds; ratios of each round's."""
    files = {"onnx": folder / "onnx.onnx", "int8": folder / "int8.onnx"}
    for name, file in files.items():
        write(student, batches[0], file, int8=name == "int8")
    answers = {"torch": answering(student, None), **{name: answering(student, file) for name, file in files.items()}}
    for answer in answers.values():
        seconds(answer, batches[:10])  # warm up
    rounds = [{name: seconds(answer, batches) for name, answer in answers.items()} for _ in range(repeats)]
    found: dict[str, Any] = {f"ms_{name}": 1e3 * statistics.median(one[name] for one in rounds) for name in answers}
    for name in files:
        ratios = sorted(one["torch"] / one[name] for one in rounds)
        found[f"{name}_faster"] = statistics.median(ratios)
        found[f"{name}_faster_range"] = [ratios[0], ratios[-1]]
        found[f"{name}_megabytes"] = files[name].stat().st_size / 1e6
    found["torch_megabytes"] = 4e-6 * sum(p.numel() for p in student.parameters())
    found["int8_relative_error"] = compare(student, files["int8"], batches[:32])["relative_error"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--json", action="store_true", help="only the result, as the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    student = model(load_tokenizer(options.tokenizer).vocabulary_size, options.layers, options.width)
    batches = pairs(options.glue, options.tokenizer, options.rows)
    facts: dict[str, Any] = {
        "threads": options.threads,
        "rows": len(batches),
        "repeats": options.repeats,
        "tokens_a_row": statistics.fmean(int(batch.mask.sum()) for batch in batches),
        "parameters": sum(p.numel() for p in student.parameters()),
        "onnxruntime": metadata.version("onnxruntime"),
    }
    with tempfile.TemporaryDirectory() as folder:
        facts |= measure(student, batches, Path(folder), options.repeats)
    sys.stdout.write(json.dumps(facts, indent=None if options.json else 2) + "\n")


if __name__ == "__main__":
    main()
