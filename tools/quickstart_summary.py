"""What quickstart found: one table, `summary.json`, and three lines to go on with.

python tools/quickstart_summary.py runs/quickstart --seconds 300
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from megadistill.core.files import read_lines, write_json
from megadistill.report.arms import paired


def summarise(folder: Path, seconds: float) -> dict[str, Any]:
    """The summary of the two runs in `folder`: distilled/ and plain/, both evaluated."""
    scores = {
        name: json.loads((folder / name / "evaluation" / "heldout.json").read_text()) for name in ("distilled", "plain")
    }
    first, resumed = repeated_steps(folder / "distilled")
    return {
        "teacher": {
            "heldout_perplexity": scores["distilled"]["teacher_perplexity"],
            "num_parameters": scores["distilled"]["teacher_num_parameters"],
        },
        **{
            name: {
                "heldout_perplexity": s["perplexity"],
                "num_parameters": s["num_parameters"],
                "agreement_top1": s["agreement_top1"],
                "tokens_per_second": tokens_per_second(folder / name),
            }
            for name, s in scores.items()
        },
        "gain": gain(folder / "distilled", folder / "plain"),
        "resumed_bitwise": len(first) >= 20 and first == resumed,
        "first_process": first,
        "resumed_process": resumed,
        "seconds": seconds,
    }


def gain(distilled: Path, plain: Path) -> dict[str, float]:
    """Paired over held-out rows: how many nats per target the distilled student is better, and its standard error."""
    ours, theirs = (json.loads((run / "evaluation" / "heldout_rows.json").read_text()) for run in (distilled, plain))
    found = paired(ours, theirs)
    assert found is not None, "both runs must be scored on the same rows and masks"
    mean, error = found
    return {"nats": mean, "standard_error": error, "standard_errors": mean / error, "rows": len(ours["targets"])}


def repeated_steps(run: Path) -> tuple[list[list[Any]], list[list[Any]]]:
    """[step, loss, parameter hash] of the steps that both the killed process and the resumed one went through."""
    by_attempt: dict[int, dict[int, list[Any]]] = {}
    for row in read_lines(run / "metrics.jsonl"):
        if "parameter_hash" in row:
            step = row["step"]
            by_attempt.setdefault(row["attempt"], {})[step] = [step, row["loss_hex"], row["parameter_hash"]]
    attempts = sorted(by_attempt)
    if len(attempts) < 2:
        return [], []
    before, after = by_attempt[attempts[0]], by_attempt[attempts[1]]
    both = sorted(before.keys() & after.keys())
    return [before[step] for step in both], [after[step] for step in both]


def tokens_per_second(run: Path) -> float:
    """The median over all logged steps."""
    return statistics.median(
        row["train/tokens_per_second"] for row in read_lines(run / "metrics.jsonl") if "train/tokens_per_second" in row
    )


def table(summary: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'':10} {'parameters':>11} {'perplexity':>11} {'agreement':>10} {'tokens/s':>9}"]
    for name in ("teacher", "distilled", "plain"):
        s = summary[name]
        agreement = f"{s['agreement_top1']:.1%}" if "agreement_top1" in s else ""
        speed = f"{s['tokens_per_second']:,.0f}" if "tokens_per_second" in s else ""
        lines.append(
            f"{name:10} {s['num_parameters']:>11,} {s['heldout_perplexity']:>11.2f} {agreement:>10} {speed:>9}"
        )
    g = summary["gain"]
    lines.append("")
    lines.append(
        f"distillation gains {g['nats']:.4f} nats a token (standard error {g['standard_error']:.4f}, "
        f"{g['standard_errors']:.1f} of them) over {g['rows']} held-out rows"
    )
    n = len(summary["first_process"])
    same = "bit for bit equal" if summary["resumed_bitwise"] else "NOT EQUAL"
    lines.append(f"killed and resumed: {n} repeated steps, losses and parameters {same}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="what the whole quickstart took")
    options = parser.parse_args()
    summary = summarise(options.folder, options.seconds)
    write_json(options.folder / "summary.json", summary)
    run = options.folder / "distilled"
    sys.stdout.write(
        f"\n{table(summary)}\n\n"
        f"summary {options.folder / 'summary.json'}, report {options.folder / 'report.html'}, "
        f"student {run / 'export' / 'hf'}\n\nwhat next:\n"
        "  .venv/bin/megadistill presets\n"
        "  .venv/bin/megadistill init distilbert my.yaml && .venv/bin/megadistill validate my.yaml --show\n"
        f"  .venv/bin/megadistill status {run}\n"
    )
    if not summary["resumed_bitwise"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
