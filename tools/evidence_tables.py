"""The README's table of what a distilled model is worth on tasks (tools/evidence.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ARMS = {
    "teacher": "teacher",
    "distilled": "distilled while pretraining",
    "task_distilled": "the same, taught the task too",
    "plain": "pretrained without a teacher",
    "untrained": "not pretrained",
    "pkd": "Patient-KD (skip), teacher's first layers",
    "bilstm": "BiLSTM, logits (Tang)",
}
TASKS = {
    "cola": ("CoLA, MCC", 0.10),
    "sst2": ("SST-2, accuracy", 0.78),
    "stsb": ("STS-B, correlation", 0.50),
    "imdb": ("IMDb, accuracy", 0.78),
    "squad": ("SQuAD, F1", 0.50),
}
"""Task -> its column, and the teacher's score from which on a comparison says something."""


def evidence_table(results: Path) -> str:
    """One row per arm: medians over seeds with half their range, and what pretraining gained."""
    found: dict[str, dict[str, Any]] = {
        arm: {file.stem: json.loads(file.read_text()) for file in (results / "evidence" / "tasks" / arm).glob("*.json")}
        for arm in ARMS
    }
    tasks = [task for task in TASKS if any(task in scores for scores in found.values())]
    if not tasks:
        return ""
    lines = [
        "| tasks | parameters | " + " | ".join(TASKS[task][0] for task in tasks) + " |",
        "|---|--:|" + "--:|" * len(tasks),
    ]
    for arm, scores in found.items():
        if scores:
            size = next(iter(scores.values()))["num_parameters"]
            cells = [_cell(scores.get(task), found["untrained"].get(task)) for task in tasks]
            lines.append(f"| {ARMS[arm]} | {size:,} | " + " | ".join(cells) + " |")
    teacher = found["teacher"]
    weak = [TASKS[t][0] for t in tasks if t in teacher and teacher[t]["median"] < TASKS[t][1]]
    unknown = [TASKS[t][0] for t in tasks if t not in teacher]
    lines += [
        "",
        "`bash tools/evidence.sh FOLDER`: medians over seeds (how many stands behind them where it is not three), and "
        "in brackets the gain over the same student without pretraining."
        + (f" The teacher itself has hardly learnt {', '.join(weak)}: those columns compare nothing." if weak else "")
        + (f" What the teacher reaches on {', '.join(unknown)} is not measured." if unknown else ""),
    ]
    return "\n".join(lines)


def _cell(score: dict[str, Any] | None, untrained: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    text = f"{100 * score['median']:.1f} ± {50 * (score['max'] - score['min']):.1f}"
    seeds = int(score["num_seeds"])
    gain = f" ({100 * (score['median'] - untrained['median']):+.1f})" if untrained and untrained is not score else ""
    return text + gain + (f", {seeds} seed{'s' * (seeds > 1)}" if seeds != 3 else "")
