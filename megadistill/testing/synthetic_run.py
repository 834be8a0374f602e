"""A run directory as training writes it, made up in milliseconds."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from megadistill.models.profile import GROUPS, SUMS, described

_BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def write_run(root: Path, name: str, steps: int = 300, offset: float = 0.0, **journal_facts: Any) -> Path:
    """A run that was killed after step 210 and resumed from 200; measured on held-out text every 50 steps."""
    path = root / name
    (path / "evaluation").mkdir(parents=True)
    (path / "checkpoints" / "step-00000200-a0001").mkdir(parents=True)

    def dump(file: str, value: Any) -> None:
        (path / file).write_text(json.dumps(value))

    loss = math.log(9.4) + offset
    scores = {"step": steps, "loss": loss, "perplexity": math.exp(loss), "agreement_top1": 0.7, "num_targets": 1000.0}
    scores |= {"num_parameters": 4_300_000}
    scores |= {"teacher_loss": math.log(6.05), "teacher_perplexity": 6.05, "teacher_num_parameters": 8_600_000}
    dump("evaluation/heldout.json", {**scores, **described(_sums(loss), torch.arange(GROUPS), with_teacher=True)})
    rows = {"nll": [(loss + 0.1 * math.sin(row)) * 100 for row in range(10)], "targets": [100.0] * 10}
    dump("evaluation/heldout_rows.json", rows)
    code = {"version": "0.1.0", "git": "0123456789abcdef"}
    dump("run.json", {"id": "ab12", "name": name, "created": "2026-01-02T03:04:05.678+00:00", "code": code})
    dump("STATUS", {"state": "done", "attempt": 2, "time": "2026-01-02T03:14:05.678+00:00"})
    dump(
        "environment.json",
        {"numerics": {"torch": "2.13.0", "cpu": "A CPU <with> 2 cores", "world size": 2}, "gpus": []},
    )
    dump(
        "evaluation/wikitext.json",
        {"perplexity": 61.5 + offset, "tokens": 245569, "num_parameters": 4_300_000},
    )
    config = {
        "name": name,
        "seed": int(re.sub(r"\D", "", name) or 0) % 10,
        "teacher": {"kind": "online", "path": "teacher"},
        "student": {"kind": "hf", "layers": 2},
        "objectives": [{"kind": "soft_ce", "weight": 5.0}, {"kind": "hard_ce", "weight": 2.0, "name": "mlm"}],
        "train": {"steps": steps},
        "batch": {"global_size": 256, "micro_size": 8},
    }
    dump("config.resolved.yaml", config)
    (path / "command.txt").write_text(f"megadistill train configs/quickstart.yaml name={name} train.steps={steps}\n")
    lines = []
    for attempt, steps_done in ((1, range(1, 211)), (2, range(201, steps + 1))):
        for step in steps_done:
            loss = 2.2 + offset + 6 * math.exp(-step / 70) + 0.08 * math.sin(step * 1.7)
            row = {
                "step": step,
                "attempt": attempt,
                "time": (_BEGIN + timedelta(seconds=0.57 * step + 60 * (attempt - 1))).isoformat(),
                "train/loss": loss,
                "train/objective/soft_ce": loss * 0.6,
                "train/objective/mlm": loss * 0.8,
                "train/gradient_share/mlm": 0.3 + 0.1 * math.sin(step),
                "teacher/loss": 1.9 + 0.1 * math.sin(step),
                "train/learning_rate": 5e-4 * min(step / 30, (steps + 1 - step) / (steps - 29)),
                "train/tokens_per_second": 5200 + 90 * math.sin(step),
                "train/memory_gb": 1.5 - math.exp(-step / 10),
                "loss_hex": loss.hex(),
            }
            if step % 50 == 0:
                row |= {
                    "heldout/loss": loss - 0.1,
                    "heldout/perplexity": math.exp(loss - 0.1),
                    "heldout/agreement_top1": 0.6 - 0.3 * math.exp(-step / 100),
                }
            lines.append(json.dumps(row))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    events = [
        {"event": "start", "attempt": 1, "step": 0, "ops": {"linear_soft_ce": "chunked PyTorch"}},
        {"event": "save", "attempt": 1, "step": 200},
        {"event": "signal", "attempt": 1, "step": 210, "signals": "SIGUSR1"},
        {"event": "resume", "attempt": 2, "step": 200, "checkpoint": "step-00000200-a0001", **journal_facts},
        {"event": "end", "attempt": 2, "step": steps},
    ]
    stamped = [{"time": f"2026-01-02T03:0{4 + i}:05.000+00:00", **event} for i, event in enumerate(events)]
    (path / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in stamped))
    return path


def _sums(loss: float) -> torch.Tensor:
    """As `models.profile.sums` gives them, of 1,000 targets: rare ones cost more, the student is too sure."""
    tenth = torch.arange(GROUPS, dtype=torch.float64)
    total = torch.full((SUMS, GROUPS), 100.0, dtype=torch.float64)
    for row, mean in ((1, loss), (2, math.log(6.05)), (3, 0.3 * loss)):
        total[row] = 100 * mean * (0.55 + tenth / GROUPS)
    for row, share in ((4, 0.8), (7, 1.0)):
        confidence = (tenth + 0.5) / GROUPS
        total[row : row + 3] = torch.stack([total[row], 100 * confidence, 100 * share * confidence])
    total[[4, 5, 6], 9] = 0
    return total
