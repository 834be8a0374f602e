"""The README's table of how fast an exported student answers."""

from __future__ import annotations

import json
from pathlib import Path


def int8_table(results: Path) -> str:
    """One row per number of threads that tools/bench_int8.py was run with."""
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((results / "int8").glob("*.json"))]
    if not kept:
        return ""
    lines = [
        "| DistilBERT-base at batch 1 | torch fp32 | ONNX fp32 | ONNX int8 | int8 faster than torch, goal: 2 "
        "| MB, fp32 and int8 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for one in kept:
        found = one["result"]
        low, high = found["int8_faster_range"]
        lines.append(
            f"| {one['environment']['numerics']['cpu']}, {found['threads']} thread{'s' * (found['threads'] > 1)} "
            f"| {found['ms_torch']:.1f} ms | {found['ms_onnx']:.1f} ms | {found['ms_int8']:.1f} ms "
            f"| {found['int8_faster']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {found['torch_megabytes']:.0f} and {found['int8_megabytes']:.0f} |"
        )
    first = kept[0]["result"]
    return "\n".join(
        [
            *lines,
            "",
            f"`python tools/bench_int8.py`: {first['rows']} pairs of STS-B's dev set, one at a time, random weights of "
            f"{first['parameters'] / 1e6:.0f} million parameters, medians of {first['repeats']} rounds, smallest and "
            "largest ratio of one round.",
        ]
    )
