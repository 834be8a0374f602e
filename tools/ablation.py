"""What each part of a recipe is worth: the DistilBERT paper's ablation and three more questions, at equal steps.

    python tools/ablation.py --data FOLDER plan             # the arms, what is done, how long the rest will take
    python tools/ablation.py --data FOLDER run --jobs 2     # all that is not done; killed, the same command goes on
    python tools/results.py table                           # the README's table

FOLDER holds wikipedia/*.parquet and books/*.parquet. Every arm is an ordinary run of configs/small_distilbert.yaml (the
small BERT that is kept with the project, a student of half its depth) on Wikipedia and books, with the changes that
stand below, and is recorded under tools/results/ablation/. Behind `--` come changes for all arms, such as for a GPU:

    python tools/ablation.py --data FOLDER run --jobs 1 -- batch.global_size=256 batch.micro_size=256 train.steps=20000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "ablation"
RECORDED = ROOT / "tools" / "results" / "ablation"
CONFIG = ROOT / "configs" / "small_distilbert.yaml"
SEEDS = (1, 2, 3)

SOFT = "{kind: soft_ce, weight: 5, temperature: 2}"
HARD = "{kind: hard_ce, weight: 2}"
COSINE = "{kind: cosine, weight: 1}"
START = "student={kind: hf, init: {kind: folder, path: runs/ablation/start}}"
"""The student as every arm but `random_init` starts, for arms whose teacher is another one."""


def objectives(*parts: str) -> str:
    return f"objectives=[{', '.join(parts)}]"


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    name: str
    changes: tuple[str, ...]
    """`{seed}` stands for the arm's seed."""
    after: str | None = None
    """An arm whose students teach here."""


ARMS = (
    Arm("all", ()),
    Arm("no_kd", (objectives(HARD, COSINE),)),
    Arm("no_cosine", (objectives(SOFT, HARD),)),
    Arm("no_lm", (objectives(SOFT, COSINE),)),
    Arm("random_init", ("student.init={kind: random}",)),
    Arm("counterfactual", (objectives(SOFT, HARD, COSINE, "{kind: counterfactual, weight: 1}"),)),
    Arm("plain", (objectives(HARD),)),
    Arm(
        "self_distillation",
        (objectives(SOFT, HARD), START, "teacher={kind: online, path: 'runs/ablation/plain-seed{seed}'}"),
        after="plain",
    ),
    Arm(
        "ensemble",
        (
            objectives(SOFT, HARD),
            START,
            "teacher={kind: ensemble, members: ["
            + ", ".join(f"{{kind: online, path: runs/ablation/plain-seed{seed}}}" for seed in SEEDS)
            + "]}",
        ),
        after="plain",
    ),
)


@dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm.name}-seed{self.seed}"

    @property
    def changes(self) -> list[str]:
        return [
            f"name={self.name}",
            f"seed={self.seed}",
            *(c.replace("{seed}", str(self.seed)) for c in self.arm.changes),
        ]

    @property
    def done(self) -> bool:
        return (RECORDED / self.name / "evaluation" / "heldout.json").exists()

    @property
    def here(self) -> bool:
        """It can teach."""
        return (RUNS / self.name / "evaluation" / "heldout.json").exists()


def common(data: Path, more: list[str]) -> list[str]:
    """What all arms change of the preset."""
    return [
        f"data.corpora.0.files=['{data}/wikipedia/*.parquet']",
        f"data.corpora.1.files=['{data}/books/*.parquet']",
        "directory=runs/ablation",
        "batch.micro_size=16",
        "train.steps=100",
        "checkpoint={every_steps: 50}",
        "evaluate={rows: 64}",
        "log={every_steps: 25, tensorboard: false}",
        *more,
    ]


def megadistill(verb: str, *arguments: str, threads: int) -> None:
    """One command, its output in runs/ablation/log.txt.

    Raises:
        SystemExit: it failed.
    """
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    RUNS.mkdir(parents=True, exist_ok=True)
    with open(RUNS / "log.txt", "a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "megadistill", verb, *arguments]
        if subprocess.run(command, cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"ablation: `megadistill {verb}` failed for {arguments}; see {RUNS / 'log.txt'}")


def train(run: Run, given: list[str], threads: int) -> None:
    """Train, score and record one run."""
    started = time.monotonic()
    megadistill("train", str(CONFIG), *given, *run.changes, threads=threads)
    megadistill("evaluate", f"runs/ablation/{run.name}", "--tasks", "heldout", "--rows", "1024", threads=threads)
    print(f"{run.name}: {time.monotonic() - started:.0f} s", flush=True)
    import results  # beside this file

    results.record(RUNS / run.name, f"ablation/{run.name}")


def ablate(data: Path, jobs: int, more: list[str]) -> None:
    """All runs that are not recorded, `jobs` at a time; those that teach come before those that learn from them, and
    are made again where only their record is left."""
    given, threads = common(data, more), max((os.cpu_count() or 1) // jobs, 1)
    megadistill("prepare", str(CONFIG), *given, threads=threads)
    if not (RUNS / "start" / "run.json").exists():  # one step too small to change anything: what students start as
        still = ["name=start", objectives(HARD), "train.steps=1", "optimizer.learning_rate=1e-30"]
        megadistill("train", str(CONFIG), *given, *still, threads=threads)
    taught = [run for run in every() if run.arm.after and not run.done]
    for stage in (None, "plain"):
        # seeds outside, so that a cut-short ablation has whole comparisons
        runs = [Run(arm, seed) for seed in SEEDS for arm in ARMS if arm.after == stage]
        teachers = {run.arm.after for run in taught}
        runs = [run for run in runs if not run.done or (run.arm.name in teachers and not run.here)]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda run: train(run, given, threads), runs))


def plan(jobs: int) -> None:
    """Say what there is to do and, from what was done, how long it takes."""
    seconds = {run.name: took for run in every() if (took := duration(run)) is not None}
    left = [run for run in every() if not run.done]
    for run in every():
        print(f"{run.name:<24} {'done' if run.done else 'to do':<6} {' '.join(run.changes[2:])}")
    if not seconds:
        print(f"{len(left)} runs to do; how long they take is known once the first is done")
        return
    usual = statistics.fmean(seconds.values())
    of_arm = {
        arm: statistics.fmean([seconds[r.name] for r in every() if r.arm == arm and r.name in seconds] or [usual])
        for arm in ARMS
    }
    minutes = sum(of_arm[run.arm] for run in left) / jobs / 60
    print(f"{len(left)} of {len(every())} runs to do: about {minutes:.0f} minutes, {jobs} at a time")


def every() -> list[Run]:
    return [Run(arm, seed) for arm in ARMS for seed in SEEDS]


def duration(run: Run) -> float | None:
    """Seconds from the start of a finished run to its end; it is scored in a fraction of that."""
    journal = RECORDED / run.name / "journal.jsonl"
    if not journal.exists():
        return None
    events = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    started, ended = (datetime.fromisoformat(event["time"]) for event in (events[0], events[-1]))
    return (ended - started).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds wikipedia/ and books/")
    parser.add_argument("verb", choices=("plan", "run"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("changes", nargs="*", metavar="-- key=value", help="for all arms")
    options = parser.parse_args()
    data = options.data.resolve()
    os.environ["MEGADISTILL_DATA"] = str(data)  # a record names the folder so
    if options.verb == "plan":
        plan(options.jobs)
    else:
        ablate(data, options.jobs, options.changes)


if __name__ == "__main__":
    main()
