"""The README's tables of what was done to runs, and what safety costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def measured(results: Path, name: str) -> dict[str, Any]:
    """What `results.py measure` has kept under a name; empty where nothing was."""
    file = results / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["result"] if file.exists() else {}
    return found


def kill_table(results: Path) -> str:
    """One row per kind of checkpoint writing."""
    lines = [
        "| SIGKILLs of a rank | checkpoints | committed ones lost | most lost at once, in save intervals "
        "| rows twice or missing, of those audited | bit for bit as undisturbed |",
        "|--:|---|--:|--:|--:|---|",
    ]
    for name, how in (("kill_test", "written at once"), ("kill_test_asynchronous", "written while training goes on")):
        if found := measured(results, name):
            rows = f"{found['rows_twice'] + found['rows_missing']} of {found['rows_audited']:,}"
            lines.append(
                f"| {found['kills']} | {how} | {found['committed_checkpoints_lost']} "
                f"| {found['max_intervals_lost']:.1f} | {rows} | {'yes' if found['bitwise'] else 'NO'} |"
            )
    if len(lines) == 2:
        return ""
    told = "`python tools/kill_test.py --kills 50`: at random moments and at every step of the commit protocol, of two "
    return "\n".join(
        [*lines, "", told + "ranks; what is lost at most is one interval (two, written while training goes on)."]
    )


def slow_tests_line(results: Path) -> str:
    """How the slow tests ended."""
    file = results / "slow_tests.json"
    if not file.exists():
        return ""
    cases = json.loads(file.read_text(encoding="utf-8"))["tests"]
    ended = {outcome: sum(case["outcome"] == outcome for case in cases) for outcome in ("passed", "skipped")}
    bad = len(cases) - sum(ended.values())
    minutes = sum(case["seconds"] for case in cases) / 60
    skipped = f", {ended['skipped']} skipped" if ended["skipped"] else ""
    failed = f", {bad} FAILED" if bad else ""
    return f"`bash tools/test.sh --slow`: {ended['passed']} passed{skipped}{failed}, in {minutes:.0f} minutes."


def overhead_table(results: Path) -> str:
    """What heartbeats, journal and checkpoints cost."""
    found = measured(results, "overhead")
    if not found:
        return ""
    lines = ["| safety | of a step's time |", "|---|--:|"]
    lines.append(f"| watchdog, heartbeat, control files, signals | {found['bookkeeping_share_of_a_step']:.3%} |")
    for name, how in (("at_once", "written at once"), ("asynchronous", "written while training goes on")):
        one = found[name]
        lines.append(
            f"| checkpoints every 50 steps, {how}: {one['training_stopped_seconds'] * 1e3:,.0f} ms each "
            f"| {one['share_of_an_interval']:.2%} |"
        )
    step = found["at_once"]["step_seconds"]
    note = f"`python tools/bench_overhead.py`: the quickstart's student on one core, {step * 1e3:,.0f} ms a step."
    return "\n".join([*lines, "", note])
