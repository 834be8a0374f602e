"""How fast is the head loss, in how much memory, beside plain PyTorch and its peers?

    python tools/bench_head.py [--device cpu|cuda] [--json] [--rounds 5] [--peers FOLDER]

Every implementation computes the same thing on the same inputs: 4 KL(teacher || student) at T = 2 plus the labels'
cross-entropy, means over rows, and the gradients of the student's hidden states and head. The gradients are compared
with fp64 ones before anything is timed; one that is wrong is not timed. Implementations take turns, so that what else
the machine does meets all of them. Memory is the peak beyond inputs and gradients.

Peers: `pip install megadistill[peers]`, or `--peers FOLDER` with them (`pip install --no-deps --target FOLDER ...`).
`--json` prints one object in the last line.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from head_peers import (
    Inputs,
    Loss,
    T,
    cut_ce,
    liger_chunked,
    liger_fused,
    liger_probabilities,
    torch_linear_ce,
    torchtune,
)
from torch import Tensor
from torch.nn import functional

from megadistill.kernels import dispatch
from megadistill.kernels.head_losses import Hard, Projection, Soft, head_losses

FLOPS = 790e12  # bf16 products per second that cuBLAS reaches on an H200 with random values; the floor is counted at it
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
CASES = {
    "cpu": [(1024, 256, 384, 30522)],
    "cuda": [
        (1024, 768, 768, 30522),
        (8192, 768, 768, 30522),
        (8192, 768, 1024, 50257),
        (8192, 1024, 2048, 128256),
        (8192, 2048, 4096, 128256),
    ],
}


def make(shape: tuple[int, int, int, int], device: str) -> Inputs:
    rows, width, teacher_width, vocabulary = shape
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    draw = torch.Generator(device).manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, generator=draw, device=device)).to(dtype)

    return Inputs(
        normal(rows, width),
        normal(vocabulary, width, scale=3 * width**-0.5),
        normal(rows, teacher_width),
        normal(vocabulary, teacher_width, scale=3 * teacher_width**-0.5),
        torch.randint(0, vocabulary, (rows,), generator=draw, device=device),
    )


def ours(hidden: Tensor, weight: Tensor, given: Inputs) -> Tensor:
    rows, terms = len(hidden), [Hard(), Soft(T)] if given.soft else [Hard()]
    coefficients = torch.full((len(terms), rows), 1 / rows, device=hidden.device)
    teachers = [Projection(given.teacher_hidden, given.teacher_weight)] if given.soft else []
    return head_losses(Projection(hidden, weight), terms, coefficients, given.labels, teachers)[0]


def ours_by(rows: str) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, given: Inputs) -> Tensor:
        before = dispatch.configure(rows=rows)
        try:
            return ours(hidden, weight, given)
        finally:
            dispatch.configure(**vars(before))

    return loss


def plain(hidden: Tensor, weight: Tensor, given: Inputs) -> Tensor:
    z = (hidden @ weight.T).float()
    if not given.soft:
        return functional.cross_entropy(z, given.labels)
    u = (given.teacher_hidden @ given.teacher_weight.T).float()
    soft = functional.kl_div((z / T).log_softmax(-1), (u / T).softmax(-1), reduction="batchmean")
    return T * T * soft + functional.cross_entropy(z, given.labels)


def implementations(device: str, soft: bool) -> tuple[dict[str, Loss], dict[str, str]]:
    """What can run here, and why the others cannot."""
    makers: dict[str, Callable[[], Loss]] = {
        "ours": lambda: ours,
        "ours, eager rows": lambda: ours_by("eager"),
        "eager": lambda: plain,
        "torch.compile": lambda: torch.compile(plain),
    }
    if soft:
        makers |= {
            "torchtune": torchtune,
            "liger chunked": lambda: liger_chunked(device),
            "liger fused": lambda: liger_fused(device),
            "liger with probabilities": lambda: liger_probabilities(device),
        }
    else:
        makers |= {"torch linear_cross_entropy": torch_linear_ce, "cut cross-entropy": lambda: cut_ce(device)}
    if device == "cuda":
        makers["ours, one read"] = lambda: ours_by("cuda")
    found: dict[str, Loss] = {}
    absent: dict[str, str] = {}
    for name, maker in makers.items():
        try:
            found[name] = maker()
        except Exception as error:  # a peer that is absent or broken must not stop the others
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found, absent


def gradients(loss: Loss, given: Inputs) -> list[Tensor]:
    hidden, weight = given.leaves()
    return list(torch.autograd.grad(loss(hidden, weight, given), (hidden, weight)))


def exact(given: Inputs) -> list[Tensor]:
    """fp64 gradients, some rows at a time."""
    hidden, weight = (t.detach().double() for t in (given.hidden, given.weight))
    dx, dw = torch.empty_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(hidden), 256):
        part = slice(start, start + 256)
        z = hidden[part] @ weight.T
        g = z.softmax(-1)
        if given.soft:
            u = given.teacher_hidden[part].double() @ given.teacher_weight.double().T
            g += T * ((z / T).softmax(-1) - (u / T).softmax(-1))
        g[torch.arange(len(g)), given.labels[part]] -= 1
        g /= len(hidden)
        dx[part] = g @ weight
        dw.addmm_(g.T, hidden[part])
    return [dx, dw]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((f.double() - w).norm() / w.norm()) for f, w in zip(found, wanted, strict=True))


def seconds(loss: Loss, given: Inputs) -> float:
    if given.hidden.is_cuda:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        gradients(loss, given)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begun = time.perf_counter()
    gradients(loss, given)
    return time.perf_counter() - begun


def extra_bytes(loss: Loss, given: Inputs) -> int:
    """Peak memory of one call beyond what was there before and the gradients it returns."""
    kept = sum(t.numel() * t.element_size() for t in given.leaves())
    if given.hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(loss, given)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before - kept
    ctypes.CDLL(None).malloc_trim(0)  # give back what earlier calls left, or this one would take it unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    before = _resident("VmRSS")
    gradients(loss, given)
    return _resident("VmHWM") - before - kept


def _resident(field: str) -> int:
    line = next(li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith(field))
    return int(line.split()[1]) * 1024


def measure(
    given: Inputs, losses: dict[str, Loss], rounds: int, floor: float | None
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Median milliseconds, extra bytes and gradient error of each; and who was left out."""
    wanted, result, refused = exact(given), {}, {}
    for name, loss in list(losses.items()):
        try:
            wrong = error(gradients(loss, given), wanted)
        except Exception as problem:
            refused[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
            continue
        if not wrong <= TOLERANCE[given.hidden.dtype]:
            refused[name] = f"its gradients are off by {wrong:.1e}"
            continue
        result[name] = {"gradient_error": wrong}
    del wanted
    for name in list(result):
        try:
            seconds(losses[name], given)
            result[name]["extra_bytes"] = float(extra_bytes(losses[name], given))
        except Exception as problem:  # out of memory, mostly
            refused[name] = f"{type(problem).__name__}: {problem}".splitlines()[0]
            del result[name]
    times: dict[str, list[float]] = {name: [] for name in result}
    for _ in range(rounds):
        for name in result:
            times[name].append(seconds(losses[name], given))
    for name, values in times.items():
        result[name]["milliseconds"] = 1000 * statistics.median(values)
        if floor is not None:
            result[name]["percent_of_floor"] = 100 * floor / statistics.median(values)
    return result, refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", help="a folder that holds the peers")
    parser.add_argument("--threads", type=int, help="CPU threads; all by default")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    if options.threads:
        torch.set_num_threads(options.threads)
    cases: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    ratios: dict[str, float] = {}

    def run(given: Inputs, losses: dict[str, Loss], what: str, shape: tuple[int, int, int, int]) -> dict[str, Any]:
        _, h, ht, v = shape
        flops = (6 * h + 2 * ht * given.soft) * len(given.hidden) * v
        floor = flops / FLOPS if options.device == "cuda" else None
        result, refused = measure(given, losses, options.rounds, floor)
        absent.update(refused)
        sizes = {"rows": len(given.hidden), "hidden": h, "teacher_hidden": ht, "vocabulary": v}
        cases.append({"what": what, **sizes, "implementations": result})
        _show(cases[-1])
        return result

    for shape in CASES[options.device]:
        given = make(shape, options.device)
        both, missing = implementations(options.device, soft=True)
        absent |= missing
        result = run(given, both, "soft and hard", shape)
        hard, missing = implementations(options.device, soft=False)
        absent |= missing
        run(replace(given, soft=False), hard, "hard", shape)
        if options.device == "cpu":
            keep = torch.rand(len(given.hidden), generator=torch.Generator().manual_seed(1)) < 0.15
            masked = run(given.rows(keep), {"ours": ours}, "soft and hard, 15 % of the rows", shape)
            ratios = _ratios(result, masked)
        del given
        torch._dynamo.reset()
    for name, reason in absent.items():
        print(f"not measured: {name} ({reason})")
    if options.json:
        print(json.dumps({"device": _device(options.device), "versions": _versions(), "cases": cases,
                          "not_measured": absent, "ratios": ratios}))  # fmt: skip


def _ratios(result: dict[str, dict[str, float]], masked: dict[str, dict[str, float]]) -> dict[str, float]:
    peers = [values for name, values in result.items() if not name.startswith(("ours", "eager"))]
    mine, eager = result["ours"], result["eager"]
    ratios = {
        "time_vs_eager": mine["milliseconds"] / eager["milliseconds"],
        "memory_vs_eager": mine["extra_bytes"] / eager["extra_bytes"],
        "masked_time_vs_eager": masked["ours"]["milliseconds"] / eager["milliseconds"],
    }
    if peers:
        ratios["time_vs_best_peer"] = mine["milliseconds"] / min(p["milliseconds"] for p in peers)
        ratios["memory_vs_best_peer"] = mine["extra_bytes"] / min(p["extra_bytes"] for p in peers)
    return {name: round(value, 3) for name, value in ratios.items()}


def _show(case: dict[str, Any]) -> None:
    print(f"\n{case['rows']} x {case['hidden']}/{case['teacher_hidden']} x {case['vocabulary']}, {case['what']}")
    for name, values in case["implementations"].items():
        floor = f"{values['percent_of_floor']:6.1f} % of the floor" if "percent_of_floor" in values else ""
        print(
            f"  {name:<28}{values['milliseconds']:10.2f} ms {values['extra_bytes'] / 2**20:10.1f} MiB"
            f"   error {values['gradient_error']:.1e} {floor}"
        )


def _device(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str]:
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    for package in ("triton", "liger-kernel", "torchtune", "cut-cross-entropy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    main()
