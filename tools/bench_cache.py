"""What kept answers of a teacher take, whether they are found again, and how well they teach.

    python tools/bench_cache.py          # writes tools/results/cache/bench.json
    python tools/bench_cache.py --config mine.yaml data.corpora.0.max_documents=1000

The text is that of the config (quickstart), of each corpus no more than --megabytes, prepared in a temporary folder.
For each way to keep: bytes a token; how many rows are found under another seed on two ranks; the gradient that a
student (the config's, at step 0) gets of its logits, along the one that the whole distributions would give, over
several independent makings; seconds of a training step beside the online teacher's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadistill.core.dist import World, best_device
from megadistill.core.files import write_json
from megadistill.core.seeds import derive
from megadistill.core.types import Batch, Needs
from megadistill.data.prepare import prepare
from megadistill.data.stream import Stream
from megadistill.kernels.head_losses import Projection, Soft, TopK, head_losses
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.step import DistillStep
from megadistill.run.build import build
from megadistill.run.config import RunConfig, load
from megadistill.teachers.answers import Answers, Keep, chosen, read_back, row_keys
from megadistill.teachers.cached import CachedTeacher

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "tools" / "results" / "cache" / "bench.json"
KEEPS = (Keep(entries=8), Keep(kind="sample", entries=19))
TEMPERATURE = 2.0
MAKINGS = 64


def made(config: RunConfig, keep: Keep, folder: Path) -> CachedTeacher:
    """The answers of the config's teacher."""
    assert config.teacher is not None
    fields = {"kind": "cached", "dir": folder / "answers", "keep": keep, "temperature": TEMPERATURE}
    teacher = CachedTeacher.model_validate({**fields, "of": config.teacher.model_dump()})
    teacher.prepare(config.data, config.seed, print, (0, 1))
    return teacher


def found(config: RunConfig, teacher: CachedTeacher) -> dict[str, int]:
    """Rows that two ranks of a run with another seed ask for in one epoch, and how many of them are there."""
    answers = Answers(teacher.dir)
    asked = hits = 0
    for rank in range(2):
        stream = Stream(config.data, World(rank, 2), 16, 8, config.seed + 1)
        for step in range(stream.rows_per_epoch // 16):
            for batch in stream.take(step):
                places = answers.find(row_keys(batch))
                asked, hits = asked + len(places), hits + int((places >= 0).sum())
    return {"rows_asked": asked, "rows_found": hits}


def logit_gradient(logits: Tensor, **theirs: Any) -> Tensor:
    """[N, V] of the student's logits."""
    leaf = logits.detach().requires_grad_()
    eye = torch.eye(logits.shape[1], dtype=logits.dtype)
    ones = torch.ones(1, len(logits), dtype=logits.dtype)
    total, _ = head_losses(Projection(leaf, eye), [Soft(TEMPERATURE)], ones, None, **theirs)
    return torch.autograd.grad(total, leaf)[0]


def bias(keep: Keep, ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """The gradient along the exact one, less 1: its mean over makings and the half width of its 95 % interval."""
    size = ours.shape[1]
    whole = logit_gradient(ours, teachers=[Projection(theirs, torch.eye(size, dtype=theirs.dtype))])
    p = (theirs / TEMPERATURE).softmax(-1)
    index = type("Index", (), {"keep": keep, "vocabulary": size, "temperature": TEMPERATURE})
    draw = torch.Generator().manual_seed(derive(0, "bench_cache"))
    errors = []
    for _ in range(MAKINGS if keep.kind == "sample" else 1):
        kept = read_back(chosen(p, keep, torch.rand(len(p), generator=draw)), index)  # type: ignore[arg-type]
        top_k = TopK(kept.ids, kept.log_probs.to(ours.dtype), kept.ghost)
        errors.append(float((logit_gradient(ours, top_k=top_k) * whole).sum() / whole.square().sum()) - 1)
    error = 1.96 * statistics.stdev(errors) / len(errors) ** 0.5 if len(errors) > 1 else 0.0
    return {"bias": statistics.fmean(errors), "bias_95": error}


def step_seconds(source: Any, batch: Batch, student: Any, repeats: int = 7) -> float:
    """Median of a training step of soft_ce."""
    objective = SoftCE(kind="soft_ce", temperature=TEMPERATURE)
    step = DistillStep(student, [objective], [objective.build(student.dims, student.dims)])
    shares, took = (1 / batch.counts()).float(), []
    for _ in range(repeats):
        started = time.perf_counter()
        step(batch, source.signals(batch, step.needs), shares)[0].backward()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def measured(file: Path, changes: list[str], megabytes: float, folder: Path) -> dict[str, Any]:
    """All that the table tells."""
    corpora = range(len(load(file, changes).data.corpora))
    config = load(file, [*(f"data.corpora.{number}.max_megabytes={megabytes}" for number in corpora), *changes])
    prepare(config.data, print)
    parts = build(config, World(), torch.device("cpu"))
    assert parts.teacher is not None
    assert best_device().type == "cpu", "its times are compared on one device: set DS_ACCELERATOR=cpu"
    batch = parts.stream.take(0)[0]
    rows = batch.attended[:256]
    with torch.no_grad():
        ours, theirs = (
            signals.head(lambda h, w, b: torch.nn.functional.linear(h, w, b), rows).double()
            for signals in (
                parts.student.signals(batch, frozenset()),
                parts.teacher.signals(batch, Needs(teacher=True)),
            )
        )
    results: dict[str, Any] = {"step_seconds_online": step_seconds(parts.teacher, batch, parts.student)}
    for keep in KEEPS:
        started = time.perf_counter()
        teacher = made(config, keep, folder)
        source = teacher.build(torch.device("cpu"))
        index = source.answers.index
        results[f"{keep.kind} of {keep.entries}"] = {
            "bytes_per_token": index.bytes / index.tokens,
            "tokens": index.tokens,
            "seconds_to_make": time.perf_counter() - started,
            **found(config, teacher),
            **bias(keep, ours, theirs[:, : ours.shape[1]]),
            "step_seconds": step_seconds(source, batch, parts.student),
        }
    size, length = parts.student.dims.vocabulary, batch.ids.shape[1]
    return results | {"vocabulary": size, "rows_a_step": len(batch.rows), "row_tokens": length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--megabytes", type=float, default=0.5)
    parser.add_argument("changes", nargs="*", metavar="key=value")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(
            options.config, [f"data.dir={folder}/data", *options.changes], options.megabytes, Path(folder)
        )
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)


if __name__ == "__main__":
    main()
