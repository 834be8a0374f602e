"""On a GPU, what decides between the row kernels and their constants, and whether products mind an odd vocabulary?

    python tools/bench_rows.py [--json]

Triton's kernel, which reads logits twice, by block and warps; the CUDA C++ one, which reads them once, by threads and
shared memory of a block. Both turn 512 rows of fp32 logits of both models into a bf16 gradient; their gradients are
compared with fp64 ones before anything is timed. `--json` prints one object in the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from megadistill.kernels.head_losses import rows_cuda, rows_torch, rows_triton
from megadistill.kernels.head_losses.loop import multiply
from megadistill.kernels.head_losses.rows_torch import Block

TERMS = "forward_kl:2.0:0.5,hard:0.0"
ROWS = 512
VOCABULARIES = (30522, 50257, 128256, 151936)
TRITON = [(block, warps) for block in (2048, 4096, 8192, 16384) for warps in (8, 16, 32)]
CUDA = [(threads, kib) for threads in (128, 256, 512) for kib in (36, 54, 72, 110, 220)]


def milliseconds(run: Callable[[], Any], repeats: int = 15) -> float:
    """Median over calls, by device events."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


class Rows:
    """512 rows of a vocabulary, with what any row function takes."""

    def __init__(self, vocabulary: int) -> None:
        leading = -(-vocabulary // 64) * 64
        self.vocabulary = vocabulary
        self.z, self.u = (3 * torch.randn(ROWS, leading, device="cuda")[:, :vocabulary] for _ in range(2))
        self.gradient = torch.empty(ROWS, leading, device="cuda", dtype=torch.bfloat16)[:, :vocabulary]
        self.labels = torch.randint(0, vocabulary, (ROWS,), device="cuda")
        self.coefficients = torch.rand(2, ROWS, device="cuda")
        self.losses = torch.empty(2, ROWS, device="cuda")
        exact, losses = torch.empty_like(self.z, dtype=torch.float64), self.losses.double()
        self.run(rows_torch.rows, self.z.double(), self.u.double(), losses, exact)
        self.exact = exact

    def run(self, rows: Callable[[Block], None], z: Tensor, u: Tensor, losses: Tensor, gradient: Tensor) -> None:
        coefficients = self.coefficients.to(z.dtype)
        rows(Block(z, coefficients, TERMS, losses, gradient, u, labels=self.labels))

    def measure(self, rows: Callable[[Block], None]) -> dict[str, float]:
        """TB/s over the least traffic: both fp32 logits read once, bf16 gradient written once."""

        def run() -> None:
            self.run(rows, self.z, self.u, self.losses, self.gradient)

        run()
        error = float((self.gradient.double() - self.exact).norm() / self.exact.norm())
        if not error <= 3e-3:
            raise RuntimeError(f"its gradient is off by {error:.1e}")
        time = milliseconds(run)
        rate = ROWS * self.vocabulary * (4 + 4 + 2) / time / 1e9
        return {"ms": time, "tb_per_s": rate, "gradient_error": error}


def row_kernels(vocabulary: int) -> Iterator[dict[str, Any]]:
    """Every kernel with every choice of constants; what cannot run says why."""
    given = Rows(vocabulary)
    device, kernels = torch.device("cuda"), [("triton", rows_triton, ("BLOCK", "WARPS"), TRITON)]
    cuda = ("cuda", rows_cuda, ("THREADS", "SLICE_KIB"), CUDA)
    no_cuda = rows_cuda.why_not(device, TERMS, torch.float32)
    for name, module, constants, choices in [*kernels, *([] if no_cuda else [cuda])]:
        for choice in choices:
            before = [getattr(module, constant) for constant in constants]
            found = {"vocabulary": vocabulary, "kernel": name, **dict(zip(constants, choice, strict=True))}
            try:
                for constant, value in zip(constants, choice, strict=True):
                    setattr(module, constant, value)
                if name == "cuda":
                    found["blocks_per_row"] = rows_cuda.blocks_per_row(vocabulary, True)
                yield found | given.measure(module.rows)
            except Exception as error:  # a choice that does not fit must not stop the others
                yield found | {"failed": str(error).splitlines()[0]}
            finally:
                for constant, value in zip(constants, before, strict=True):
                    setattr(module, constant, value)
    if no_cuda:
        yield {"vocabulary": vocabulary, "kernel": "cuda", "failed": no_cuda}


def products(vocabulary: int, width: int = 768) -> dict[str, float]:
    """TFLOP/s of the three products of a block, with the vocabulary as it is, and with that of the next multiple of 64
    (what copying the head into a padded buffer would buy)."""
    result: dict[str, float] = {"vocabulary": vocabulary, "width": width}
    leading = -(-vocabulary // 64) * 64
    for name, size in (("as it is", vocabulary), ("padded", leading)):
        x = torch.randn(2048, width, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(size, width, device="cuda", dtype=torch.bfloat16)
        z = torch.empty(2048, leading, device="cuda")[:, :size]
        g = torch.randn(2048, leading, device="cuda").bfloat16()[:, :size]
        dx, dw = torch.empty(2048, width, device="cuda"), torch.zeros(size, width, device="cuda")
        flops = 2 * 2048 * width * size / 1e9
        result[f"logits, {name}"] = flops / milliseconds(lambda x=x, w=w, z=z: multiply(x, w.T, z))
        result[f"hidden gradient, {name}"] = flops / milliseconds(lambda g=g, w=w, dx=dx: multiply(g, w, dx))
        result[f"weight gradient, {name}"] = flops / milliseconds(
            lambda g=g, x=x, dw=dw: multiply(g.T, x, dw, add=True)
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")
    options = parser.parse_args()
    rows, best = [], {}
    for vocabulary in VOCABULARIES:
        found = list(row_kernels(vocabulary))
        rows += found
        torch.cuda.empty_cache()
        for kernel in ("triton", "cuda"):
            timed = sorted((r for r in found if r["kernel"] == kernel and "ms" in r), key=lambda r: r["ms"])
            for entry in timed[:2] or [r for r in found if r["kernel"] == kernel][:1]:
                print({name: round(v, 4) if isinstance(v, float) else v for name, v in entry.items()})
            if timed:
                best[f"{kernel} {vocabulary}"] = timed[0]["ms"]
    ratios = {
        str(v): round(best[f"cuda {v}"] / best[f"triton {v}"], 3)
        for v in VOCABULARIES
        if f"cuda {v}" in best and f"triton {v}" in best
    }
    print(f"time of the one read over Triton's two, each at its best, by vocabulary: {ratios}")
    gemms = [products(vocabulary) for vocabulary in (30522, 50257)]
    for entry in gemms:
        print({name: round(value, 1) for name, value in entry.items()})
    if options.json:
        kept = {"device": torch.cuda.get_device_name(), "rows": rows, "cuda_over_triton": ratios}
        print(json.dumps({**kept, "products_tflops": gemms}))


if __name__ == "__main__":
    main()
