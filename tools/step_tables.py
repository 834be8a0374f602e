"""The README's table of whole steps beside the textbook's."""

from __future__ import annotations

from pathlib import Path

from trust_tables import measured

GOALS = {
    "cpu": {
        "speed_vs_textbook": "at least 1.1",
        "masked_speed_vs_textbook": "at least 1.25",
        "memory_vs_textbook": "at most 0.5",
        "speed_vs_compiled": "",
        "weak_scaling_efficiency": "",
    },
    "cuda": {"speed_vs_textbook": "at least 1.5", "memory_vs_textbook": "", "speed_vs_compiled": ""},
}
TOLD = {
    "speed_vs_textbook": "speed, both heads on all tokens, over the textbook's",
    "masked_speed_vs_textbook": "speed, heads on masked rows, over the textbook's on all tokens",
    "memory_vs_textbook": "extra memory, all tokens, over the textbook's",
    "speed_vs_compiled": "speed, all tokens, over the compiled textbook's",
    "weak_scaling_efficiency": "one process's step on one core over that of two on two, the same rows each",
}


def step_table(results: Path) -> str:
    """One row per ratio of each device that was measured."""
    lines = []
    for device, goals in GOALS.items():
        found = measured(results, f"step/{device}")
        if not found:
            continue
        ours, theirs = found["cases"]["ours"], found["cases"]["textbook"]
        told = f"{found['device']}, {found['size']}, {found['rows']} x {found['length']} tokens"
        lines += ["", f"| a step on {told} | goal | measured |", "|---|--:|--:|"]
        more = {
            "speed_vs_textbook": f" ({ours['seconds']:.2f} s for {theirs['seconds']:.2f} s)",
            "memory_vs_textbook": f" ({ours['extra_memory_mb']:,.0f} MB for {theirs['extra_memory_mb']:,.0f} MB, "
            f"{found['rows_of_memory']} rows)",
        }
        lines += [
            f"| {TOLD[name]} | {goal} | {found['ratios'][name]:.2f}{more.get(name, '')} |"
            for name, goal in goals.items()
            if name in found["ratios"]
        ]
    if not lines:
        return ""
    note = "`python tools/bench_step.py`; what was predicted before: `tools/results/step.md`."
    return "\n".join([*lines[1:], "", note])
