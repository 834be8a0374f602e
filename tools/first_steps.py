"""What the first hundred steps of a healthy run look like, from quickstart's record."""

from __future__ import annotations

import json
from pathlib import Path

STEPS = (1, 10, 20, 50, 100)
COLUMNS = {
    "loss": ("train/loss", "{:.2f}"),
    "soft_ce": ("train/objective/soft_ce", "{:.3f}"),
    "hard_ce": ("train/objective/hard_ce", "{:.3f}"),
    "the teacher's hard_ce": ("teacher/loss", "{:.3f}"),
    "cosine": ("train/objective/cosine", "{:.3f}"),
    "gradient norm": ("train/gradient_norm", "{:.1f}"),
    "tokens/s": ("train/tokens_per_second", "{:,.0f}"),
}


def first_steps_table(results: Path) -> str:
    """One row per step; numbers that were not logged at a step are left out."""
    file = results / "quickstart-seed1" / "distilled" / "metrics.jsonl"
    if not file.exists():
        return ""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    by_step = {row["step"]: row for row in rows if "train/loss" in row}
    lines = [f"| quickstart, step | {' | '.join(COLUMNS)} |", f"|--:{'|--:' * len(COLUMNS)}|"]
    for step in STEPS:
        cells = [form.format(by_step[step][key]) if key in by_step[step] else "" for key, form in COLUMNS.values()]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)
