"""Measured results: keep a run's evidence under tools/results/, and write the README's tables from it.

    python tools/results.py record runs/quickstart/distilled quickstart-seed1/distilled
    python tools/results.py tests junit.xml slow_tests   # what a test run found
    python tools/results.py table            # rewrites the README between its markers

A record is the run's config, metrics, journal, environment (versions), command and evaluation; a test compares the
README with what `table` would write.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tools" / "results"
README = ROOT / "README.md"
KEPT = ("config.resolved.yaml", "metrics.jsonl", "journal.jsonl", "environment.json", "command.txt")
BEGIN, END = "<!-- tools/results.py writes from here -->", "<!-- to here -->"


def record(run: Path, name: str) -> Path:
    """Copy a run's evidence; rows of single scores are left out, they are large and can be made again."""
    target = RESULTS / name
    shutil.rmtree(target, ignore_errors=True)
    (target / "evaluation").mkdir(parents=True)
    for file in KEPT:
        (target / file).write_text(_here(run / file), encoding="utf-8")
    for file in sorted((run / "evaluation").glob("*.json")):
        if not file.stem.endswith("_rows"):
            shutil.copy(file, target / "evaluation" / file.name)
    summary = run.parent / "summary.json"
    if summary.exists():
        shutil.copy(summary, target.parent / summary.name)
    return target


def tests(junit: Path, name: str) -> Path:
    """Keep what a test run found: every test with its outcome and seconds."""
    cases = [
        {
            "test": f"{case.get('classname')}::{case.get('name')}",
            "outcome": next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"),
            "seconds": round(float(case.get("time", 0)), 1),
        }
        for case in ElementTree.parse(junit).iter("testcase")
    ]
    target = RESULTS / f"{name}.json"
    target.write_text(json.dumps({"environment": versions(), "tests": cases}, indent=1) + "\n", encoding="utf-8")
    return target


def versions() -> dict[str, Any]:
    """What a result that comes from no run was found with."""
    from megadistill.run.environment import describe

    facts = describe(1)
    return {"numerics": facts["numerics"], "cores": facts["cores"]}


def _here(file: Path) -> str:
    """A file's text, with this machine's folders and name replaced by what they are."""
    text = file.read_text(encoding="utf-8")
    folders = {
        os.environ.get("MEGADISTILL_DATA", ""): "$MEGADISTILL_DATA",
        f"{ROOT}/": "",
        f'"host": "{socket.gethostname()}"': '"host": ""',
    }
    for found, said in folders.items():
        text = text.replace(found, said) if found else text
    return text


def tables(results: Path = RESULTS) -> str:
    """The README's generated part."""
    parts = [part for part in (quickstart_table(results), preset_table(results)) if part]
    return "\n\n".join(parts) if parts else "Nothing measured yet."


def quickstart_table(results: Path) -> str:
    """One row per model and recorded seed of quickstart."""
    summaries = {path.parent.name: json.loads(path.read_text()) for path in sorted(results.glob("*/summary.json"))}
    if not summaries:
        return ""
    lines = [
        "| quickstart | model | parameters | held-out perplexity | agrees with teacher | tokens/s | nats gained |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, summary in summaries.items():
        for model in ("teacher", "distilled", "plain"):
            row, gain = summary[model], summary["gain"]
            agreement = f"{row['agreement_top1']:.1%}" if "agreement_top1" in row else ""
            speed = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else ""
            gained = f"{gain['nats']:.4f} ± {gain['standard_error']:.4f}" if model == "distilled" else ""
            lines.append(
                f"| {name.removeprefix('quickstart-')} | {model} | {row['num_parameters']:,} "
                f"| {row['heldout_perplexity']:.2f} | {agreement} | {speed} | {gained} |"
            )
    bitwise = sum(summary["resumed_bitwise"] for summary in summaries.values())
    seconds = ", ".join(f"{summary['seconds']:.0f}" for summary in summaries.values())
    lines.append("")
    lines.append(
        f"Resumed bit for bit after a SIGKILL: {bitwise} of {len(summaries)}. Seconds after installation: {seconds}."
    )
    return "\n".join(lines)


def preset_table(results: Path) -> str:
    """One row per recorded run outside quickstart."""
    rows = list(_runs(results))
    if not rows:
        return ""
    head = [
        "run",
        "steps",
        "rows x tokens a step",
        "tokens/s",
        "resumes",
        "held-out loss",
        "WikiText-2 loss",
        "of teacher",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += [
        "",
        "Minutes of training on two cores shared with other work: they show that the presets run, not what they reach.",
    ]
    return "\n".join(lines)


def _runs(results: Path) -> Iterator[list[str]]:
    for path in sorted(results.glob("*/config.resolved.yaml")):
        run = path.parent
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        metrics, journal = _lines(run / "metrics.jsonl"), _lines(run / "journal.jsonl")
        speeds = [row["train/tokens_per_second"] for row in metrics if "train/tokens_per_second" in row]
        heldout, wikitext = (_scores(run, task) for task in ("heldout", "wikitext"))
        ends = [event["step"] for event in journal if event["event"] == "end"]
        yield [
            run.name,
            f"{ends[-1] if ends else max(row['step'] for row in metrics):,}",
            f"{config['batch']['global_size']} x {config['data']['sequence_length']}",
            f"{statistics.median(speeds):,.0f}",
            str(sum(event["event"] == "resume" for event in journal)),
            _number(heldout, "loss"),
            _number(wikitext, "loss"),
            _number(wikitext, "teacher_loss"),
        ]


def _scores(run: Path, task: str) -> dict[str, Any]:
    file = run / "evaluation" / f"{task}.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _number(scores: dict[str, Any], key: str) -> str:
    return f"{scores[key]:.3f}" if key in scores else "not measured"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def with_tables(readme: str, text: str) -> str:
    """The README with its generated part replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"README.md lacks the markers {BEGIN} and {END}"
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("run", type=Path)
    recording.add_argument("name")
    testing = verbs.add_parser("tests")
    testing.add_argument("junit", type=Path)
    testing.add_argument("name")
    verbs.add_parser("table")
    options = parser.parse_args()
    if options.verb == "record":
        record(options.run, options.name)
    if options.verb == "tests":
        tests(options.junit, options.name)
    README.write_text(with_tables(README.read_text(encoding="utf-8"), tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
