"""What distillation is worth after pretraining: models, task models and scores behind the README's evidence table.

    python tools/evidence.py --data FOLDER plan             # what there is to do
    python tools/evidence.py --data FOLDER run              # all that is not done; killed, the same command goes on
    python tools/evidence.py --data FOLDER run --jobs 2 --only teacher distilled plain
    python tools/results.py table                           # the README's table

FOLDER holds wikipedia/, books/, glue/, imdb/ and squad*/. A small BERT is pretrained and teaches a student of half its
layers (configs/small_distilbert.yaml); the same student also pretrains without a teacher, from random weights. The
three are kept under tools/results/evidence/ as bf16 safetensors, where they are found again and not made anew: remove
a folder there to make its model again. Then each learns the tasks with three seeds, beside a student that has never
been pretrained and students that are taught once more by a teacher that has learnt the task.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path("tools/results/evidence")
RUNS = Path("runs/evidence")
SHARD = "14MB"

SIZES = {
    "cpu": {
        "layers": 2,
        "seeds": "0,1,2",
        "teacher": [],
        "student": [],
        "steps": 1500,
        "epochs": {"sst2": 0.5, "stsb": 3.0, "squad": 1.0},
        "task": ["optimizer.learning_rate=3e-4", "engine.precision=fp32", "batch={global_size: 32, micro_size: 16}"],
    },
    "cuda": {
        "layers": 4,
        "seeds": "0,1,2",
        "teacher": [
            "student.config.num_hidden_layers=8",
            "student.config.hidden_size=384",
            "student.config.intermediate_size=1024",
            "batch={global_size: 256, micro_size: 256}",
            "train.steps=30000",
            "engine.precision=bf16",
        ],
        "student": [
            "student.config.num_hidden_layers=4",
            "student.config.hidden_size=384",
            "student.config.intermediate_size=1024",
            "student.init.layers=[0, 2, 4, 6]",
            "batch={global_size: 256, micro_size: 256}",
            "engine.precision=bf16",
        ],
        "steps": 15000,
        "task": ["optimizer.learning_rate=1e-4", "batch={global_size: 32, micro_size: 32}"],
    },
}
"""Changes of small_bert, small_distilbert and of the tasks' recipes, by what there is to compute with; a student's
layers and pretraining steps."""

RANDOM = ["objectives=[{kind: hard_ce}]", "teacher=null", "student.init={kind: random}"]
"""A student that has nothing of its teacher."""

TASKS = {
    "cola": (4.0, ["task.sequence_length=64"]),
    "sst2": (1.0, ["task.sequence_length=64"]),
    "imdb": (2.0, ["task.sequence_length=128"]),
    "stsb": (6.0, ["task.sequence_length=128"]),
    "squad": (2.0, ["task.sequence_length=128", "task.stride=48"]),
}
"""Epochs, where a size has no others, and changes."""


@dataclass(frozen=True)
class Arm:
    """A row of the table: a model, and how it learns tasks."""

    name: str
    model: str
    tasks: tuple[str, ...] = tuple(TASKS)
    recipes: dict[str, str] | None = None
    """Task -> config to distil by; None: fine-tune."""
    changes: tuple[str, ...] = ()
    fresh: bool = False
    """It has the model's sizes, and nothing that it learnt."""


WHOLE = "student={{kind: hf, init: {{kind: folder, path: {}}}}}"
HALF = "student={{kind: hf, config: {{num_hidden_layers: {}}}, init: {{kind: folder, path: {}, layers: first}}}}"
KD = {task: "hinton_sst2" for task in ("cola", "sst2", "imdb")} | {"stsb": "distil_stsb", "squad": "distilbert_squad"}


def arms(layers: int) -> tuple[Arm, ...]:
    """All of them; students have `layers`."""
    teacher, distilled = f"{KEPT}/teacher", f"{KEPT}/distilled"
    half = HALF.format(layers, teacher)
    lstm = ("task.augment=null", "optimizer.learning_rate=1.0")
    return (
        Arm("teacher", teacher),
        Arm("distilled", distilled),
        Arm("task_distilled", distilled, recipes=KD, changes=(WHOLE.format(distilled),)),
        Arm("plain", f"{KEPT}/plain"),
        Arm("untrained", f"{KEPT}/plain", fresh=True),
        Arm("pkd", teacher, ("sst2",), {"sst2": "pkd_skip_sst2"}, (half,)),
        Arm("bilstm", teacher, ("sst2",), {"sst2": "tang_bilstm_sst2"}, lstm),
    )


def unlearnt(model: str) -> str:
    """A student of the same sizes that knows nothing."""
    found = json.loads((ROOT / model / "config.json").read_text(encoding="utf-8"))
    given = yaml.safe_load((ROOT / "configs" / "small_bert.yaml").read_text(encoding="utf-8"))["student"]["config"]
    config = json.dumps({name: found[name] for name in given})
    return f"student={{kind: hf, architecture: {found['model_type']}, config: {config}, init: {{kind: random}}}}"


def launch(config: str, *changes: str) -> None:
    """A run on all that this machine has; it goes on where it was."""
    import torch

    processes = torch.cuda.device_count() or os.cpu_count() or 1
    _call("bash", "launch/local.sh", config, *changes, NPROC=str(processes))


def megadistill(*arguments: str) -> str:
    return _call(sys.executable, "-m", "megadistill", *arguments)


def _call(*command: str, **environ: str) -> str:
    """Run it, its messages in runs/evidence/log.txt, and give what it prints. Commands that run at the same time share
    the cores by OMP_NUM_THREADS, which is theirs to inherit.

    Raises:
        SystemExit: it failed.
    """
    (ROOT / RUNS).mkdir(parents=True, exist_ok=True)
    with open(ROOT / RUNS / "log.txt", "a", encoding="utf-8") as log:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=log, text=True, check=False
        )
        log.write(done.stdout)
    if done.returncode:
        raise SystemExit(f"evidence: `{' '.join(command)}` failed; see {RUNS / 'log.txt'}")
    return done.stdout


def pretrain(name: str, config: str, data: Path, *changes: str) -> None:
    """Train one of the three models, score it, and keep its evidence and its weights."""
    if (ROOT / KEPT / name).exists():
        return
    run = RUNS / name
    given = [f"name={name}", *corpora(data), *changes]
    megadistill("prepare", config, *given)
    launch(config, *given)
    megadistill("evaluate", str(run), "--tasks", "heldout,wikitext", "--wikitext", str(data / "wikitext-2-raw"))
    import results  # beside this file

    results.record(ROOT / run, f"small_{name}")
    keep(run, ROOT / KEPT / name)


def keep(run: Path, target: Path) -> None:
    """A run's student as a Hugging Face folder: weights in bf16, in shards small enough for a repository."""
    import results  # beside this file
    import torch
    from transformers import AutoModelForMaskedLM

    with tempfile.TemporaryDirectory() as temporary:
        whole, small = Path(temporary) / "whole", Path(temporary) / "small"
        megadistill("export", str(run), "--to", "hf", "--output", str(whole))
        model = AutoModelForMaskedLM.from_pretrained(whole, dtype=torch.bfloat16)
        model.save_pretrained(small, max_shard_size=SHARD)
        for file in whole.iterdir():
            if file.suffix != ".safetensors" and not (small / file.name).exists():
                (small / file.name).write_text(results.anywhere(file.read_text(encoding="utf-8")), encoding="utf-8")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(small, target)


def corpora(data: Path) -> list[str]:
    return [
        f"data.corpora.0.files=['{data}/wikipedia/*.parquet']",
        f"data.corpora.1.files=['{data}/books/*.parquet']",
    ]


def learn(arm: Arm, task: str, data: Path, size: dict[str, Any], after: Future[Any] | None = None) -> None:
    """Teach a model a task with every seed, and keep the scores; once its teacher is there, which is `after`'s work."""
    if after is not None:
        after.result()
    started = time.monotonic()
    found = ask(arm, task, data, size, size["seeds"])
    result = score_file(arm, task)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"seconds": round(time.monotonic() - started), **found}, indent=1) + "\n")
    print(f"{arm.name}, {task}: {100 * found['median']:.1f}", flush=True)


def learn_all(asked: list[Arm], data: Path, size: dict[str, Any], jobs: int) -> None:
    """Whatever of these has no score yet, `jobs` at a time: task by task, so that what is cut short has whole
    comparisons, and in each the teacher first, which is taught again where only its score was kept."""
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // jobs, 1))
    futures: list[Future[None]] = []
    pool = ThreadPoolExecutor(jobs)
    try:
        for task in TASKS:
            left = [arm for arm in asked if task in arm.tasks and not score_file(arm, task).exists()]
            left.sort(key=lambda arm: arm.recipes is not None)  # who waits for a teacher keeps nobody else waiting
            after: Future[Any] | None = None
            if left and left[-1].recipes and left[0].name != "teacher" and not (ROOT / taught(task)).exists():
                after = pool.submit(ask, arms(size["layers"])[0], task, data, size, "0")
            for arm in left:
                futures.append(pool.submit(learn, arm, task, data, size, after if arm.recipes else None))
                after = futures[-1] if arm.name == "teacher" else after
        for future in as_completed(futures):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def ask(arm: Arm, task: str, data: Path, size: dict[str, Any], seeds: str) -> dict[str, Any]:
    """Teach a model a task with these seeds; what `evaluate` says of it."""
    changes, recipe = how(arm, task, size)
    epochs = size.get("epochs", {}).get(task, TASKS[task][0])
    asked = ["--tasks", task, "--data", str(data), "--seeds", seeds, "--epochs", str(epochs)]
    given = [] if recipe is None else ["--recipe", recipe]
    found = megadistill("evaluate", arm.model, *asked, "--output", str(RUNS / "tasks" / arm.name), *given, *changes)
    return dict(json.loads(found)[task])


def taught(task: str) -> Path:
    """The teacher that has learnt a task."""
    return RUNS / "tasks" / "teacher" / f"{task}-seed-0"


def how(arm: Arm, task: str, size: dict[str, Any]) -> tuple[list[str], str | None]:
    """Changes of the recipe by which an arm learns a task, and the recipe where it is not plain fine-tuning."""
    changes = [*TASKS[task][1], *size["task"], *arm.changes, *([unlearnt(arm.model)] if arm.fresh else [])]
    if arm.recipes is None:
        return changes, None
    return [*changes, f"teacher.path={taught(task)}"], f"configs/tasks/{arm.recipes[task]}.yaml"


def score_file(arm: Arm, task: str) -> Path:
    return ROOT / KEPT / "tasks" / arm.name / f"{task}.json"


def evidence(data: Path, device: str, only: list[str], jobs: int) -> None:
    """Make all that is missing, in the order in which one stands on the other."""
    size = SIZES[device]

    def wanted(name: str) -> bool:
        return not only or name in only

    start = [*size["student"], f"train.steps={size['steps']}"]
    if wanted("teacher"):
        pretrain("teacher", "small_bert", data, *size["teacher"])
    if wanted("distilled"):
        pretrain("distilled", "small_distilbert", data, *start)
    if wanted("plain"):
        pretrain("plain", "small_distilbert", data, *start, *RANDOM)
    learn_all([arm for arm in arms(size["layers"]) if wanted(arm.name)], data, size, jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds wikipedia/, books/, glue/, imdb/, squad*/")
    parser.add_argument("--device", choices=SIZES, help="what to size it for; by default what is here")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="models or arms")
    parser.add_argument("--jobs", type=int, default=1, help="tasks learnt at a time; they share the cores")
    parser.add_argument("verb", choices=("plan", "run"))
    options = parser.parse_args()
    data = options.data.resolve()
    os.environ["MEGADISTILL_DATA"] = str(data)  # a record names the folder so
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = options.device
    if options.verb == "run":
        return evidence(data, device, options.only, options.jobs)
    for model in ("teacher", "distilled", "plain"):
        print(f"{model:<16} {'done' if (ROOT / KEPT / model).exists() else 'to do'}")
    for arm in arms(SIZES[device]["layers"]):
        for task in arm.tasks:
            print(f"{arm.name:<16} {task:<6} {'done' if score_file(arm, task).exists() else 'to do'}")


if __name__ == "__main__":
    main()
