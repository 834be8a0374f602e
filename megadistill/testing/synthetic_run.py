"""A run directory as training writes it, made up in milliseconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def write_run(root: Path, name: str, steps: int = 300, offset: float = 0.0, **journal_facts: Any) -> Path:
    """A run that was killed after step 210 and resumed from 200; measured on held-out text every 50 steps."""
    path = root / name
    (path / "evaluation").mkdir(parents=True)
    (path / "checkpoints" / "step-00000200-a0001").mkdir(parents=True)

    def dump(file: str, value: Any) -> None:
        (path / file).write_text(json.dumps(value))

    dump("evaluation/heldout.json", {"step": steps, "perplexity": 9.4 + offset, "teacher_perplexity": 6.05})
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
        "teacher": {"kind": "online", "path": "teacher"},
        "student": {"kind": "hf", "layers": 2},
        "objectives": [{"kind": "soft_ce", "weight": 5.0}, {"kind": "hard_ce", "weight": 2.0, "name": "mlm"}],
        "train": {"steps": steps},
        "batch": {"global_size": 256, "micro_size": 8},
    }
    dump("config.resolved.yaml", config)
    lines = []
    for attempt, steps_done in ((1, range(1, 211)), (2, range(201, steps + 1))):
        for step in steps_done:
            loss = 2.2 + offset + 6 * math.exp(-step / 70) + 0.08 * math.sin(step * 1.7)
            row = {
                "step": step,
                "attempt": attempt,
                "train/loss": loss,
                "train/objective/soft_ce": loss * 0.6,
                "train/objective/mlm": loss * 0.8,
                "train/gradient_share/mlm": 0.3 + 0.1 * math.sin(step),
                "teacher/loss": 1.9 + 0.1 * math.sin(step),
                "train/learning_rate": 5e-4 * min(step / 30, (steps + 1 - step) / (steps - 29)),
                "train/tokens_per_second": 5200 + 90 * math.sin(step),
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
