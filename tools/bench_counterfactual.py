"""What the counterfactual objective costs: the time of a training step with it, over that of a step without.

    python tools/bench_counterfactual.py               # writes tools/results/counterfactual/bench.json
    python tools/bench_counterfactual.py --rows 64 --length 512 --width 768 --vocabulary 30522 --device cuda

Both steps are the causal_distilbert preset's (teacher's forward pass, soft_ce, hard_ce, cosine, backward pass, AdamW),
in turn, with the depths of BERT-base and DistilBERT and their proportion of vocabulary to width.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, BertConfig, DistilBertConfig

from megadistill.core.files import write_json
from megadistill.core.seeds import derive
from megadistill.core.types import IGNORE, Batch
from megadistill.models.signals import LanguageModel
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.counterfactual import Counterfactual
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.step import DistillStep
from megadistill.teachers.online import OnlineSource

RESULT = Path(__file__).resolve().parents[1] / "tools" / "results" / "counterfactual" / "bench.json"
PLAIN = [SoftCE(kind="soft_ce", temperature=2), HardCE(kind="hard_ce"), Cosine(kind="cosine")]
WITH = [*PLAIN, Counterfactual(kind="counterfactual", layers={3: 6})]


def models(width: int, vocabulary: int, length: int) -> tuple[OnlineSource, LanguageModel]:
    """A teacher of BERT's depth and a student of DistilBERT's."""
    heads, inner = max(width // 64, 1), 4 * width
    teacher = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=12,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=length,
    )
    student = DistilBertConfig(
        vocab_size=vocabulary, dim=width, n_layers=6, n_heads=heads, hidden_dim=inner, max_position_embeddings=length
    )
    auto: Any = AutoModelForMaskedLM
    return OnlineSource("random", LanguageModel(auto.from_config(teacher))), LanguageModel(auto.from_config(student))


def batch(rows: int, length: int, vocabulary: int) -> Batch:
    """Full rows, 15 % of them labelled."""
    ids = torch.randint(0, vocabulary, (rows, length))
    labels = torch.where(torch.rand(rows, length) < 0.15, ids, IGNORE)
    whole = torch.ones_like(ids)
    return Batch(ids, whole.bool(), whole, labels, torch.arange(rows))


def seconds(step: DistillStep, optimizer: torch.optim.Optimizer, teacher: OnlineSource, data: Batch) -> float:
    """Of one training step."""
    started = time.perf_counter()
    shares = (1 / data.counts()).float().to(data.ids.device)
    loss, _ = step(data, teacher.signals(data, step.needs), shares)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if data.ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=10_176)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.manual_seed(derive(0, "bench_counterfactual"))
    device = torch.device(options.device)
    teacher, student = models(options.width, options.vocabulary, options.length)
    teacher.model.to(device)
    data = batch(options.rows, options.length, options.vocabulary).to(device)
    steps = {}
    for name, objectives in (("without", PLAIN), ("with", WITH)):
        step = DistillStep(student, objectives, [o.build(student.dims, teacher.dims) for o in objectives]).to(device)
        steps[name] = step.train(), torch.optim.AdamW(step.parameters(), lr=1e-4)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options.repeats + 2):
        for name, (step, optimizer) in steps.items():
            took = seconds(step, optimizer, teacher, data)
            if repeat >= 2:  # the first ones compile and allocate
                times[name].append(took)
    ratios = [w / p for w, p in zip(times["with"], times["without"], strict=True)]
    result = {
        **{f"seconds_{name}": statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(ratios),
        "ratio_smallest": min(ratios),
        "ratio_largest": max(ratios),
        "rows": options.rows,
        "length": options.length,
        "width": options.width,
        "vocabulary": options.vocabulary,
        "repeats": options.repeats,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)


if __name__ == "__main__":
    main()
