"""On a GPU, what decides the row kernel's constants: block and warps, and whether products mind an odd vocabulary.

    python tools/bench_rows.py [--json]

`--json` prints one object in the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

from megadistill.kernels.head_losses import rows_triton
from megadistill.kernels.head_losses.loop import multiply

TERMS = "forward_kl:2.0:0.5,hard:0.0"
ROWS = 512


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


def row_kernel(vocabulary: int) -> list[dict[str, float]]:
    """TB/s over the least traffic: both fp32 logits read once, bf16 gradient written once."""
    leading = -(-vocabulary // 64) * 64
    z, u = (torch.randn(ROWS, leading, device="cuda")[:, :vocabulary] for _ in range(2))
    gradient = torch.empty(ROWS, leading, device="cuda", dtype=torch.bfloat16)[:, :vocabulary]
    labels = torch.randint(0, vocabulary, (ROWS,), device="cuda")
    coefficients, losses = torch.ones(2, ROWS, device="cuda"), torch.empty(2, ROWS, device="cuda")
    found = []
    for block in (1024, 2048, 4096, 8192, 16384):
        for warps in (4, 8, 16, 32):
            rows_triton.BLOCK, rows_triton.WARPS = block, warps

            def run() -> None:
                rows_triton.rows(z, u, None, None, labels, None, coefficients, TERMS, False, losses, gradient)

            time = milliseconds(run)
            rate = ROWS * vocabulary * (4 + 4 + 2) / time / 1e9
            found.append({"vocabulary": vocabulary, "block": block, "warps": warps, "ms": time, "tb_per_s": rate})
    return found


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
    rows = [entry for vocabulary in (30522, 128256) for entry in row_kernel(vocabulary)]
    for vocabulary in (30522, 128256):
        best = sorted((r for r in rows if r["vocabulary"] == vocabulary), key=lambda r: r["ms"])[:3]
        for entry in best:
            print(f"V={vocabulary}: block {entry['block']}, {entry['warps']} warps: {entry['tb_per_s']:.2f} TB/s")
    gemms = [products(vocabulary) for vocabulary in (30522, 50257)]
    for entry in gemms:
        print({name: round(value, 1) for name, value in entry.items()})
    if options.json:
        print(json.dumps({"device": torch.cuda.get_device_name(), "rows": rows, "products_tflops": gemms}))


if __name__ == "__main__":
    main()
