"""How fast is a whole distillation step, in how much memory, beside the textbook's?

    python tools/bench_step.py [--device cpu|cuda] [--preset distilbert|distilgpt2|small] [--rounds 5] [--json]

Side by side, on the same batches, from the same weights: (a) the step as published distillation code writes it (Sanh
et al. 2019: both models' logits for every token, each loss by itself, each read with `.item()`), (b) the same under
torch.compile, (c) ours, (d) ours with both losses at masked positions only, (e) as (c) with both models' layers under
torch.compile. All compute the same loss; that is checked first, without dropout. They take turns, so that what else
the machine does meets all of them; ratios are medians over rounds. Memory is the peak beyond what lies there between
steps, at 32 rows on a CPU. The last line of --json is one object. --scaling measures the step of one process on one
core over that of two on two, each with the same rows.

A step of (c) is also split into its parts, each waited for by itself (`split_seconds`). "data wait" is what `next()`
takes on rows of prepared shards that a thread makes two steps ahead, and moving them to the device. "communication" is
the counts' small sum and DeepSpeed's reduction of gradients, once a step: of one process what it copies for that,
between two --scaling tells. "waiting for the others" is a rank's time until all have their gradients. From ZeRO 1 on
the gathering of updated weights is in "optimizer".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from step_textbook import CLIP, COSINE, HARD, PRESETS, SOFT, T, Textbook, batch, models  # noqa: E402  beside this file
from torch import Tensor  # noqa: E402

from megadistill.core import dist  # noqa: E402
from megadistill.core.types import Batch  # noqa: E402
from megadistill.data.prepare import prepare  # noqa: E402
from megadistill.data.stream import Stream  # noqa: E402
from megadistill.engine.deepspeed import BatchShape, Engine, EngineConfig  # noqa: E402
from megadistill.engine.optimizer import OptimizerConfig  # noqa: E402
from megadistill.models.compiled import compile_layers  # noqa: E402
from megadistill.models.signals import LanguageModel  # noqa: E402
from megadistill.objectives.cosine import Cosine  # noqa: E402
from megadistill.objectives.hard_ce import HardCE  # noqa: E402
from megadistill.objectives.soft_ce import SoftCE  # noqa: E402
from megadistill.objectives.step import DistillStep  # noqa: E402
from megadistill.plan.footprint import footprint  # noqa: E402
from megadistill.plan.machine import GPUS  # noqa: E402
from megadistill.plan.zero import Sharded  # noqa: E402
from megadistill.run.config import DataConfig  # noqa: E402
from megadistill.teachers.online import OnlineSource  # noqa: E402
from megadistill.testing import memory, processes, task_files  # noqa: E402
from megadistill.train.accumulate import accumulate  # noqa: E402
from megadistill.train.stragglers import Stopwatch  # noqa: E402

ROWS = {"cpu": (8, 128, 32), "cuda": (64, 512, 64)}
"""Rows and positions of a micro-batch, and rows where memory is measured."""


class Ours:
    """(c), (d) and (e)."""

    def __init__(
        self, size: dict[str, int], device: torch.device, rows: int, masked_only: bool = False, compiled: bool = False
    ) -> None:
        teacher, student = models(size)
        on_gpu = device.type == "cuda"
        where = LanguageModel(teacher).to(device, torch.bfloat16 if on_gpu else torch.float32)
        self.teacher = OnlineSource("random", where)
        objectives = [
            SoftCE(kind="soft_ce", temperature=T, weight=SOFT, scope="targets" if masked_only else "tokens"),
            HardCE(kind="hard_ce", weight=HARD),
            Cosine(kind="cosine", weight=COSINE),
        ]
        model = LanguageModel(student)
        for one in (where, model) if compiled else ():
            compile_layers(one)
        self.module = DistillStep(model, objectives, [o.build(model.dims, self.teacher.dims) for o in objectives])
        self.config = EngineConfig(zero_stage=1 if on_gpu else 0, precision="bf16" if on_gpu else "fp32")
        world = dist.from_environment()
        shape = BatchShape(rows * world.size, rows, 1)
        self.engine = Engine(self.config, OptimizerConfig(gradient_clipping=CLIP), self.module, shape, device)
        self.device, self.number = device, 0

    def step(self, given: Batch) -> Tensor:
        self.number += 1
        counts = dist.sum_over_ranks(given.counts())
        sums, _ = accumulate(
            self.engine,
            self.teacher,
            [given],
            counts,
            step=self.number,
            seed=0,
            check_ranks=False,
            stopwatch=Stopwatch(self.device),
        )
        self.engine.step(1.0)
        return sums

    def value(self, given: Batch) -> float:
        self.module.eval()
        with torch.no_grad():
            moved = given.to(self.device)
            shares = (1 / given.counts().clamp(min=1)).float().to(self.device)
            signals = self.teacher.signals(moved, self.module.needs)
            loss, _ = self.engine.forward(moved, signals, shares, 1)
        self.module.train()
        return float(loss)

    def split(self, given: Batch) -> dict[str, float]:
        """Seconds of each part of one step, waited for one by one."""
        times: dict[str, float] = {}

        @contextmanager
        def timed(name: str) -> Iterator[None]:
            started = time.perf_counter()
            yield
            synchronise(self.device)
            times[name] = times.get(name, 0.0) + time.perf_counter() - started

        world = dist.from_environment().size
        dist.barrier()
        with timed("communication"):
            counts = dist.sum_over_ranks(given.counts())
        moved = given.to(self.device)
        shares = (world / counts.clamp(min=1)).float().to(self.device)
        engine, module = self.engine, self.module
        engine.accumulate_over(1)
        with timed("teacher forward"):
            signals = self.teacher.signals(moved, module.needs)
        student, reducing = module.student, engine.engine
        whole, reduce = student.signals, reducing.allreduce_gradients
        states: list[Any] = []

        def once(*arguments: Any) -> Any:
            with timed("student forward"):
                states.append(whole(*arguments))
            return states[-1]

        def reduced(*arguments: Any, **options: Any) -> None:
            synchronise(self.device)
            with timed("waiting for the others"):
                dist.barrier()
            with timed("communication"):
                reduce(*arguments, **options)

        student.signals = once  # type: ignore[method-assign]
        with timed("head and other losses"):
            loss, _ = engine.forward(moved, signals, shares, 1)
        times["head and other losses"] -= times["student forward"]
        del student.signals
        reducing.allreduce_gradients = reduced
        before = times["communication"]
        with timed("backward"):
            engine.backward(loss)
        times["backward"] -= times["waiting for the others"] + times["communication"] - before
        del reducing.allreduce_gradients
        with timed("optimizer"):
            engine.step(1.0)
        return times

    def data_wait(self, size: dict[str, int], rows: int, length: int, steps: int) -> float:
        """The median of so many steps."""
        with tempfile.TemporaryDirectory() as folder:
            config = DataConfig.model_validate(
                {
                    "dir": f"{folder}/prepared",
                    "corpora": [{"kind": "synthetic", "num_documents": 400}],
                    "tokenizer": str(task_files.tokenizer(Path(folder) / "tokenizer")),
                    "sequence_length": length,
                    "targets": {"kind": "clm" if "causal" in size else "mlm"},
                }
            )
            prepare(config, lambda line: None, workers=1)
            stream = Stream(config, dist.from_environment(), rows, rows, seed=0)
            source = stream.prefetching(0, steps + 1, pinned=self.device.type == "cuda")
            took = []
            for _ in range(steps + 1):
                started = time.perf_counter()
                given = next(source)[0].to(self.device)
                synchronise(self.device)
                took.append(time.perf_counter() - started)
                self.step(given)
            source.close()  # type: ignore[attr-defined]
        return statistics.median(took[1:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def operations(size: dict[str, int], given: Batch, masked_only: bool) -> int:
    """Those of the models in one step, counted on the meta device."""
    with torch.device("meta"):
        teacher, student = models(size)
        source, model = OnlineSource("random", LanguageModel(teacher)), LanguageModel(student)
        scope = "targets" if masked_only else "tokens"
        objectives = [SoftCE(kind="soft_ce", temperature=T, scope=scope), HardCE(kind="hard_ce"), Cosine(kind="cosine")]
        step = DistillStep(model, objectives, [o.build(model.dims, source.dims) for o in objectives])
    made = lambda: Sharded(EngineConfig(zero_stage=0), [list(step.parameters())], 1, on_gpu=True)  # noqa: E731
    return footprint(step, source, given, made, 1, 1, on_gpu=True).flops


def compare(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All cases."""
    size = PRESETS[options.preset]
    rows, length, rows_of_memory = ROWS[device.type]
    rows, rows_of_memory = options.rows or rows, options.rows or rows_of_memory
    batches = [batch(rows, length, size, seed) for seed in range(options.rounds + 2)]
    cases: dict[str, Textbook | Ours] = {
        "textbook": Textbook(size, device, compiled=False),
        "compiled": Textbook(size, device, compiled=True),
        "ours": Ours(size, device, rows),
        **({} if "causal" in size else {"ours, masked only": Ours(size, device, rows, masked_only=True)}),
        "ours, compiled": Ours(size, device, rows, compiled=True),
    }
    values = {name: cases[name].value(batches[0]) for name in ("textbook", "ours", "ours, compiled")}
    tolerance = 2e-2 if device.type == "cuda" else 1e-4
    far = [name for name, value in values.items() if abs(value / values["textbook"] - 1) >= tolerance]
    assert not far, f"not the same loss: {values}"
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number, given in enumerate(batches):
        order = list(cases) if number % 2 else list(reversed(cases))
        for name in order:
            took = seconds(lambda name=name, given=given: cases[name].step(given), device)  # type: ignore[misc]
            if number >= 2:  # the first ones compile and allocate
                times[name].append(took)
            tell(f"round {number} {name}: {took:.3f} s")
    large = batch(rows_of_memory, length, size, 99)
    needed = {name: memory.peak(lambda one=one: one.step(large), device) for name, one in cases.items()}  # type: ignore[misc]
    ours = cases["ours"]
    assert isinstance(ours, Ours)
    found: dict[str, Any] = {}
    card = torch.cuda.get_device_name().lower() if device.type == "cuda" else ""
    peak = next((gpu.bf16 for name, gpu in GPUS.items() if name in card), None)
    for name in cases:
        middle = statistics.median(times[name])
        flops = operations(size, batches[0], masked_only="masked" in name)
        found[name] = {
            "seconds": middle,
            "tokens_per_second": rows * length / middle,
            "extra_memory_mb": needed[name] / 2**20,
            "tera_operations_per_second": flops / middle / 1e12,
            "mfu": None if peak is None else flops / middle / peak,
        }
    waited = ours.data_wait(size, rows, length, options.rounds)
    found["ours"]["split_seconds"] = {"data wait": waited, **ours.split(batches[0])}

    def ratio(theirs: str, name: str) -> float:
        return statistics.median(t / o for t, o in zip(times[theirs], times[name], strict=True))

    masked = {
        "masked_speed_vs_textbook": lambda: ratio("textbook", "ours, masked only"),
        "masked_memory_vs_textbook": lambda: needed["ours, masked only"] / needed["textbook"],
    }
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "preset": options.preset,
        "rows": rows,
        "length": length,
        "rows_of_memory": rows_of_memory,
        "loss": values,
        "cases": found,
        "ratios": {
            "speed_vs_textbook": ratio("textbook", "ours"),
            "memory_vs_textbook": needed["ours"] / needed["textbook"],
            "speed_vs_compiled": ratio("compiled", "ours"),
            "compiled_speed_vs_textbook": ratio("textbook", "ours, compiled"),
            **{name: measure() for name, measure in masked.items() if "ours, masked only" in cases},
        },
    }


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """One process's step over two processes', each on a core of its own with the same rows; they take turns."""
    command = [str(Path(__file__).resolve()), "--worker", "--preset", options.preset, "--rounds", str(options.rounds)]
    command += ["--rows", str(options.rows)] if options.rows else []
    took: dict[int, list[float]] = {1: [], 2: []}
    parts: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for ranks in (1, 2, 2, 1):
        found = json.loads(processes.run(command, ranks, timeout=3600)[0].splitlines()[-1])
        took[ranks] += found["seconds"]
        parts[ranks] += found["parts"]
        tell(f"{ranks} process(es): {' '.join(f'{one:.4f}' for one in found['seconds'])} s a step")
    seconds = {f"seconds_{ranks}": statistics.median(each) for ranks, each in took.items()}
    split = {
        f"split_seconds_{ranks}": {name: statistics.median(one[name] for one in each) for name in each[0]}
        for ranks, each in parts.items()
    }
    efficiency = seconds["seconds_1"] / seconds["seconds_2"]
    return {**seconds, **split, "preset": options.preset, "ratios": {"weak_scaling_efficiency": efficiency}}


def work_of_one_rank(options: argparse.Namespace) -> None:
    world = dist.from_environment()
    device = dist.connect(world, 600)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[world.local_rank % len(cores)]})
    torch.set_num_threads(1)
    size = PRESETS[options.preset]
    rows, length, _ = ROWS["cpu"]
    rows = options.rows or rows
    ours = Ours(size, device, rows)
    given = batch(rows, length, size, world.rank)
    took = [seconds(lambda: ours.step(given), device) for _ in range(options.rounds + 1)][1:]
    parts = [ours.split(given) for _ in range(options.rounds)]
    if world.is_main:
        sys.stdout.write(json.dumps({"seconds": took, "parts": parts}) + "\n")
    dist.disconnect()


def tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=PRESETS, default="distilbert")
    parser.add_argument("--rows", type=int, help="of a micro-batch, and where memory is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scaling", action="store_true", help="measure nothing but this")
    parser.add_argument("--json", action="store_true", help="only the result, as the last line")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work_of_one_rank(options)
    if options.scaling:
        sys.stdout.write(json.dumps(scaling(options)) + "\n")
        return None
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(processes.free_port()))
    if options.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    device = dist.connect(dist.from_environment(), 600)
    found = compare(options, device)
    dist.disconnect()
    sys.stdout.write(json.dumps(found, indent=None if options.json else 2) + "\n")


if __name__ == "__main__":
    main()
