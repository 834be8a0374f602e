"""The README's tables of speed: whole steps beside the textbook's, and head losses beside their peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trust_tables import measured

GOALS = {
    "cpu": {
        "speed_vs_textbook": "at least 1.1",
        "masked_speed_vs_textbook": "at least 1.25",
        "memory_vs_textbook": "at most 0.5",
        "speed_vs_compiled": "",
        "compiled_speed_vs_textbook": "",
    },
    "cuda": {
        "speed_vs_textbook": "at least 1.5",
        "memory_vs_textbook": "",
        "speed_vs_compiled": "",
        "compiled_speed_vs_textbook": "",
    },
}
TOLD = {
    "speed_vs_textbook": "speed, both heads on all tokens, over the textbook's",
    "masked_speed_vs_textbook": "speed, heads on masked rows, over the textbook's on all tokens",
    "memory_vs_textbook": "extra memory, all tokens, over the textbook's",
    "speed_vs_compiled": "speed, all tokens, over the compiled textbook's",
    "compiled_speed_vs_textbook": "speed, all tokens, with compiled layers, over the textbook's",
}


def step_table(results: Path) -> str:
    """One row per ratio of each device that was measured."""
    lines = []
    for device, goals in GOALS.items():
        found = measured(results, f"step/{device}")
        if not found:
            continue
        machines = [found, *filter(None, [measured(results, f"step/{device}_other")])]
        told = f"{found['device']}, {found['preset']}, {found['rows']} x {found['length']} tokens"
        columns = ["goal", "measured", "on another"][: 1 + len(machines)]
        lines += ["", f"| a step on {told} | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
        lines += [
            f"| {TOLD[name]} | {goal} | {' | '.join(_cell(one, name) for one in machines)} |"
            for name, goal in goals.items()
            if name in found["ratios"]
        ]
    if not lines:
        return ""
    scaling = [one for one in (measured(results, f"step/scaling{end}") for end in ("", "_other")) if one]
    if scaling:
        cells = (
            f"{one['ratios']['weak_scaling_efficiency']:.2f} ({one['seconds_1']:.2f} s for {one['seconds_2']:.2f} s)"
            for one in scaling
        )
        name = "one process's step on one core over that of two on two, the same rows each"
        lines += [f"| {name} |  | {' | '.join(cells)} |"]
    note = "`python tools/bench_step.py`; what was predicted before, and the machines: `tools/results/step.md`."
    return "\n".join([*lines[1:], "", note])


def _cell(found: dict[str, Any], name: str) -> str:
    ours, theirs = found["cases"]["ours"], found["cases"]["textbook"]
    more = {
        "speed_vs_textbook": f" ({ours['seconds']:.2f} s for {theirs['seconds']:.2f} s)",
        "memory_vs_textbook": f" ({ours['extra_memory_mb']:,.0f} MB for {theirs['extra_memory_mb']:,.0f} MB, "
        f"{found['rows_of_memory']} rows)",
    }
    return f"{found['ratios'][name]:.2f}{more.get(name, '')}"


HEAD_GOALS = {
    "time_vs_eager": ("time, over plain PyTorch's", "at most 0.55"),
    "memory_vs_eager": ("extra memory, over plain PyTorch's", "at most 0.25"),
    "masked_time_vs_eager": ("time with 15 % of the rows, over plain PyTorch's with all", "at most 0.2"),
    "time_vs_best_peer": ("time, over the fastest peer's", "at most 1"),
    "memory_vs_best_peer": ("extra memory, over the leanest peer's", "below 1"),
}


def head_table(results: Path) -> str:
    """What tools/bench_head.py measured on a CPU, beside the goals."""
    found = measured(results, "head/cpu")
    if not found:
        return ""
    case = found["cases"][0]
    peers = [name for name in case["implementations"] if not name.startswith("ours")]
    lines = ["| head losses, hard and soft, on a CPU | goal | measured |", "|---|--:|--:|"]
    lines += [f"| {told} | {goal} | {found['ratios'][name]:.2f} |" for name, (told, goal) in HEAD_GOALS.items()]
    shape = (
        f"{case['rows']:,} rows, widths {case['hidden']} and {case['teacher_hidden']}, {case['vocabulary']:,} entries"
    )
    note = f"`python tools/bench_head.py`: {shape}, two cores; beside {', '.join(peers)}."
    hard = next(one["implementations"] for one in found["cases"] if one["what"] == "hard")
    others = {name: took for name, took in hard.items() if not name.startswith("ours")}
    leanest = min(others, key=lambda name: others[name]["extra_bytes"])

    def told_of(took: dict[str, float]) -> str:
        return f"{took['milliseconds']:,.0f} ms and {took['extra_bytes'] / 2**20:,.0f} MB"

    note += f" Of labels alone: {told_of(hard['ours'])}; the leanest peer ({leanest}): {told_of(others[leanest])}."
    return "\n".join([*lines, "", note])
