"""Measured results: keep a run's evidence under tools/results/, and write the README's tables from it.

    python tools/results.py record runs/quickstart/distilled quickstart-seed1/distilled
    python tools/results.py measure data/bench python tools/bench_data.py --json
    python tools/results.py tests junit.xml slow_tests   # what a test run found
    python tools/results.py table            # rewrites the README between its markers

A record is the run's config, metrics, journal, environment (versions), command and evaluation; of what `measure` runs
it is the last line of output, a JSON object, with command and versions. A test compares the README with what `table`
would write.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import statistics
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml
from evidence_tables import evidence_table
from export_tables import int8_table
from first_steps import first_steps_table
from recipe_tables import ablation_table, cache_table, counterfactual_line, scores
from step_tables import head_table, step_table
from trust_tables import kill_table, measured, overhead_table, slow_tests_line

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tools" / "results"
README = ROOT / "README.md"
KEPT = ("config.resolved.yaml", "metrics.jsonl", "journal.jsonl", "environment.json", "command.txt")
PACKAGES = ("datasets", "sentencepiece", "webdataset")
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


def measure(name: str, command: list[str]) -> Path:
    """Run a tool and keep what it tells."""
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    target = RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = {"command": shlex.join(command), "environment": versions(), "result": json.loads(output.splitlines()[-1])}
    target.write_text(anywhere(json.dumps(kept, indent=1)) + "\n", encoding="utf-8")
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
    packages = {package: metadata.version(package) for package in PACKAGES}
    return {"numerics": facts["numerics"], "packages": packages, "code": facts["code"], "cores": facts["cores"]}


def _here(file: Path) -> str:
    return anywhere(file.read_text(encoding="utf-8"))


def anywhere(text: str) -> str:
    """A text with this machine's folders and name replaced by what they are."""
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
    makers = (
        quickstart_table,
        first_steps_table,
        preset_table,
        ablation_table,
        cache_table,
        counterfactual_line,
        data_table,
        corpora_table,
        kill_table,
        overhead_table,
        slow_tests_line,
        step_table,
        head_table,
        evidence_table,
        int8_table,
    )
    parts = [part for part in (make(results) for make in makers) if part]
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


def data_table(results: Path) -> str:
    """What the data's goals are, and what was measured."""
    names = ("data/bench", "simulate_order/simulation", "data/wait")
    bench, simulation, wait = (measured(results, name) for name in names)
    lines = ["| data | goal | measured |", "|---|--:|--:|"]
    if bench:
        ratios, found = bench["ratios"], bench["figures"]
        speeds = {
            "shuffled reading, rows/s over webdataset's": ("read_vs_webdataset", "20", "read", "webdataset"),
            "shuffled reading, rows/s over `datasets`'": ("read_vs_datasets", "5", "read", "datasets"),
            "reading in order, rows/s over plain webdataset's": (
                "sequential_vs_webdataset",
                "1",
                "sequential",
                "plain_webdataset",
            ),
        }
        lines.append(
            f"| `prepare`, seconds over `encode_batch`'s | at most 1.3 | {ratios['prepare_vs_encode_batch']:.2f} "
            f"({found['prepare_mb_per_s']:.2f} MB/s) |"
        )
        for what, (ratio, goal, ours, theirs) in speeds.items():
            rates = f"{found[f'{ours}_rows_per_s']:,.0f} over {found[f'{theirs}_rows_per_s']:,.0f}"
            lines.append(f"| {what} | at least {goal} | {ratios[ratio]:.1f} ({rates}) |")
        times = f"{found['resume_far_seconds']:.2f} s over {found['resume_near_seconds']:.2f} s"
        lines.append(f"| first batch from row 10^8 over row 10 | 1 | {ratios['resume_far_vs_near']:.2f} ({times}) |")
    if simulation:
        size = f"{simulation['tokens']:.1e} tokens in {simulation['shards']:,} shards"
        lines += [
            f"| restart of a rank, {size} | under 2 s | {simulation['restart_seconds']:.2f} s |",
            f"| its memory | under 200 MB | {simulation['rank_memory_mb']:.0f} MB |",
            f"| rows taken twice or never, of {simulation['rows_audited']:,} audited over {simulation['kills']} kills "
            f"| 0 | {simulation['rows_twice'] + simulation['rows_missing']} |",
        ]
    if wait:
        of = f"{wait['wait_seconds'] * 1e3:.1f} ms of {wait['step_seconds']:.1f} s on a CPU beside other work; "
        of += "`tools/bench_wait.py`"
        lines.append(f"| wait for data, of a step of the DistilBERT preset | under 1 % | {wait['share']:.3%} ({of}) |")
    note = "`python tools/bench_data.py` and `tools/simulate_order.py`: two cores, otherwise idle."
    lines += ["", note]
    return "\n".join(lines) if bench or simulation else ""


def corpora_table(results: Path) -> str:
    """What the real corpora became with each tokenizer."""
    prepared = measured(results, "data/prepare_real")
    head = [
        "tokenizer",
        "packing",
        "corpus",
        "documents",
        "duplicates",
        "tokens",
        "rows",
        "padding",
        "unknown",
        "seconds",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|" + "--:|" * (len(head) - 3)]
    for name, made in prepared.items():
        for number, stats in enumerate(made["corpora"]):
            train = stats["train"]
            cells = [
                f"{stats['documents']:,}",
                f"{stats['duplicates']:,}",
                f"{train['tokens']:,}",
                f"{train['rows']:,}",
            ]
            cells += [f"{train['padding_share']:.1%}", f"{stats['unknown_share']:.3%}"]
            both = f"{made['seconds']}" if number == 0 else ""
            lines.append("| " + " | ".join([name, made["packing"], stats["name"], *cells, both]) + " |")
    return "\n".join(lines) if prepared else ""


def _runs(results: Path) -> Iterator[list[str]]:
    for path in sorted(results.glob("*/config.resolved.yaml")):
        run = path.parent
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        metrics, journal = _lines(run / "metrics.jsonl"), _lines(run / "journal.jsonl")
        speeds = [row["train/tokens_per_second"] for row in metrics if "train/tokens_per_second" in row]
        heldout, wikitext = (scores(run, task) for task in ("heldout", "wikitext"))
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
    measuring = verbs.add_parser("measure")
    measuring.add_argument("name")
    measuring.add_argument("command", nargs=argparse.REMAINDER)
    testing = verbs.add_parser("tests")
    testing.add_argument("junit", type=Path)
    testing.add_argument("name")
    verbs.add_parser("table")
    options = parser.parse_args()
    if options.verb == "record":
        record(options.run, options.name)
    if options.verb == "measure":
        measure(options.name, options.command)
    if options.verb == "tests":
        tests(options.junit, options.name)
    README.write_text(with_tables(README.read_text(encoding="utf-8"), tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
