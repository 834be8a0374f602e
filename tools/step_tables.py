"""The README's tables of speed: whole steps beside the textbook's, and head losses beside their peers."""

from __future__ import annotations

from pathlib import Path

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
        ours, theirs = found["cases"]["ours"], found["cases"]["textbook"]
        told = f"{found['device']}, {found['preset']}, {found['rows']} x {found['length']} tokens"
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
    if scaling := measured(results, "step/scaling"):
        seconds = f" ({scaling['seconds_1']:.2f} s for {scaling['seconds_2']:.2f} s)"
        efficiency = f"{scaling['ratios']['weak_scaling_efficiency']:.2f}{seconds}"
        lines += [f"| one process's step on one core over that of two on two, the same rows each |  | {efficiency} |"]
    note = "`python tools/bench_step.py`; what was predicted before: `tools/results/step.md`."
    return "\n".join([*lines[1:], "", note])


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
