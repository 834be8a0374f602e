"""The README's tables of what the parts of a recipe are worth, and what they cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ARMS = {
    "all": ("all three losses", ""),
    "no_lm": ("without hard_ce", "-0.31"),
    "no_cosine": ("without cosine", "-1.46"),
    "no_kd": ("without soft_ce", "-2.96"),
    "random_init": ("all, random start", "-3.69"),
    "counterfactual": ("all, and counterfactual", ""),
    "plain": ("hard_ce alone", ""),
    "self_distillation": ("soft_ce and hard_ce from `hard_ce alone`", ""),
    "ensemble": ("the same from an ensemble of all its seeds", ""),
}
"""Arm of tools/ablation.py -> what it is called, and what Sanh et al. (2019, table 4) lost by it."""


def ablation_table(results: Path) -> str:
    """One row per arm: means over seeds, differences to `all` seed by seed; and whether the order is the paper's."""
    found = {arm: _by_seed(results / "ablation", arm) for arm in ARMS}
    found = {arm: seeds for arm, seeds in found.items() if seeds}
    if "all" not in found:
        return ""
    lines = [
        "| ablation | seeds | held-out loss | worse than `all` by | agrees with teacher | published, GLUE points |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    worse: dict[str, float] = {}
    for arm, seeds in found.items():
        title, published = ARMS[arm]
        losses = [scores["loss"] for scores in seeds.values()]
        pairs = [scores["loss"] - found["all"][seed]["loss"] for seed, scores in seeds.items() if seed in found["all"]]
        worse[arm] = statistics.fmean(pairs)
        agrees = statistics.fmean(scores["agreement_top1"] for scores in seeds.values())
        lines.append(
            f"| {title} | {len(seeds)} | {_spread(losses)} | {_spread(pairs, '+') if arm != 'all' else ''} "
            f"| {f'{agrees:.1%}' if arm not in ('self_distillation', 'ensemble') else ''} | {published} |"
        )
    settings = yaml.safe_load((results / "ablation" / "all-seed1" / "config.resolved.yaml").read_text())
    batch, length = settings["batch"]["global_size"], settings["data"]["sequence_length"]
    teacher = next(iter(found["all"].values()))["teacher_num_parameters"]
    published = [arm for arm, (_, points) in ARMS.items() if points and arm in found]
    ours = sorted(published, key=lambda arm: -worse[arm])
    theirs = sorted(published, key=lambda arm: float(ARMS[arm][1]))
    lines += [
        "",
        f"{settings['train']['steps']} steps of {batch} x {length} tokens of Wikipedia and books each, from the "
        f"small BERT under tools/results/evidence/ ({teacher / 1e6:.1f} million parameters, where the paper's was "
        "BERT-base; `python tools/ablation.py --data FOLDER run`). ± is the standard "
        f"deviation over seeds. What hurts most, here: {', '.join(ours)}; in the paper: {', '.join(theirs)}: "
        f"{'the same order' if ours == theirs else 'not the same order'}.",
    ]
    return "\n".join(lines)


def cache_table(results: Path) -> str:
    """One row per way to keep a teacher's answers (tools/bench_cache.py)."""
    file = results / "cache" / "bench.json"
    if not file.exists():
        return ""
    bench = json.loads(file.read_text())
    lines = [
        "| teacher's answers | bytes a token | found, other seed, 2 ranks | gradient too long by | step, of online's |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, row in bench.items():
        if isinstance(row, dict):
            bias = f"{row['bias']:+.2%}" + (f" ± {row['bias_95']:.2%}" if row["bias_95"] else "")
            lines.append(
                f"| {name} entries | {row['bytes_per_token']:.1f} | {row['rows_found']:,} of {row['rows_asked']:,} "
                f"| {bias} | {row['step_seconds'] / bench['step_seconds_online']:.0%} |"
            )
    lines += [
        "",
        f"`python tools/bench_cache.py`: {bench['vocabulary']:,} entries of vocabulary, steps "
        f"of soft_ce on {bench['rows_a_step']} x {bench['row_tokens']} tokens on one CPU core; ± is a 95 % interval "
        "over independent samples.",
    ]
    return "\n".join(lines)


def counterfactual_line(results: Path) -> str:
    """What tools/bench_counterfactual.py measured."""
    file = results / "counterfactual" / "bench.json"
    if not file.exists():
        return ""
    bench = json.loads(file.read_text())
    return (
        f"A step with the counterfactual objective takes {bench['ratio']:.2f} times one without "
        f"({bench['ratio_smallest']:.2f} to {bench['ratio_largest']:.2f} in {bench['repeats']} pairs, "
        f"{bench['rows']} x {bench['length']} tokens, width {bench['width']}, {bench['device']}; "
        "`python tools/bench_counterfactual.py`)."
    )


def _by_seed(folder: Path, arm: str) -> dict[str, dict[str, Any]]:
    """Seed -> held-out scores of an arm's recorded runs."""
    found = {path.name.removeprefix(f"{arm}-seed"): scores(path, "heldout") for path in folder.glob(f"{arm}-seed*")}
    return {seed: scores for seed, scores in sorted(found.items()) if scores}


def _spread(values: Sequence[float], sign: str = "") -> str:
    error = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.4f}{error}"


def scores(run: Path, task: str) -> dict[str, Any]:
    """A recorded run's evaluation; empty where there is none."""
    file = run / "evaluation" / f"{task}.json"
    return json.loads(file.read_text()) if file.exists() else {}
