"""Run the real order and index code at the size of 10^12 tokens on 1,024 ranks that are killed and change in number.

    python tools/simulate_order.py --json

An index of a million shards is written (its rows are not: nothing here reads tokens). A run then goes through stretches
of steps, each with its own number of ranks and ended by a kill at a random step, from which the next goes on at its
last checkpoint. Simulated ranks log the ids of the rows they take, of a sample of ranges of ids; the audit reads those
logs alone and counts ids that the run trained on twice or never. Steps that a kill threw away are thrown away with
their logs, as a checkpoint does. A rank process of its own measures how long a restart takes and how much memory.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megadistill.data.index import Shard, read_index, read_table, write_index
from megadistill.data.order import BatchSizes, Blocks, Order

LENGTH = 512
ROWS_PER_MEMBER = 256
GLOBAL = 8192
"""Rows of a step: 4.2 million tokens."""

WORLDS = (1024, 512, 1024, 256, 1024, 128, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=1e12)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument(
        "--audited-windows", type=int, default=3, help="windows of the epoch whose rows are all audited"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--folder", type=Path, help="keep the index here; default: a temporary folder")
    parser.add_argument("--restart", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.restart is not None:
        restart(options.restart, options.seed)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        rows = write(folder, int(options.tokens), options.shards)
        found = {"tokens": rows * LENGTH, "rows": rows, "shards": options.shards}
        found |= measured(folder, options.seed)
        found |= audit(rows, options.seed, options.audited_windows)
    for name, value in found.items():
        print(f"{name:>22}: {value:,}" if isinstance(value, int) else f"{name:>22}: {value}")
    if options.json:
        print(json.dumps(found))


# ------------------------------------------------------------------------------------------ restart


def write(folder: Path, tokens: int, shards: int) -> int:
    """The index of a corpus of that size; returns its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = max(1, tokens // LENGTH // shards)
    members = -(-rows // ROWS_PER_MEMBER)
    draw = np.random.default_rng(0)
    checksums = draw.integers(0, 1 << 63, (shards, members), dtype=np.uint64)
    digests = draw.bytes(32 * shards)
    made = [
        Shard(number // 100, number % 100, rows, rows * LENGTH * 4, digests[32 * number : 32 * number + 32], checksum)
        for number, checksum in enumerate(checksums)
    ]
    about = {"sequence_length": LENGTH, "dtype": "uint16", "tokenizer": "none", "vocabulary_size": 50257}
    return write_index(folder, "simulated", {**about, "special_ids": {}}, made, ROWS_PER_MEMBER).rows


def restart(folder: Path, seed: int) -> None:
    """What one rank does between starting and knowing the first rows it needs, far into the run."""
    before = memory_mb("VmRSS")
    began = time.perf_counter()
    index = read_index(folder)
    table = read_table(folder, index)
    order = Order([index.rows], None, seed, skips=[(10**6, 10**6 + GLOBAL)], blocks=blocks())
    sizes = BatchSizes(GLOBAL // 2, [(1000, GLOBAL)])
    places = order.locate(sizes.positions(150_000, rank=7, ranks=1024, micro_size=GLOBAL // 1024))
    shards = np.searchsorted(table.first_row, places.row, side="right") - 1
    names = [index.name(int(table.task[shard]), int(table.part[shard])) for shard in shards]
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "mb": memory_mb("VmHWM"), "mb_before": before, "rows": len(names)}))


def measured(folder: Path, seed: int) -> dict[str, float]:
    """Restart time, and peak resident memory of the whole process, of a fresh process."""
    command = [sys.executable, __file__, "--restart", str(folder), "--seed", str(seed)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        "restart_seconds": round(told["seconds"], 3),
        "rank_memory_mb": round(told["mb"], 1),
        "python_and_numpy_mb": round(told["mb_before"], 1),
        "index_mb": round(sum(path.stat().st_size for path in folder.glob("index.*")) / 1e6, 1),
    }


def memory_mb(field: str) -> float:
    """VmRSS: resident now; VmHWM: at most, of this program (what getrusage tells counts its parent's too)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024 / 1e6


# ------------------------------------------------------------------------------------------ audit


def blocks() -> Blocks:
    return Blocks(rows=16_384, window=64)


def audit(rows: int, seed: int, windows: int) -> dict[str, int]:
    """Train through the first windows of an epoch and the beginning of the next one, and count from the ranks' logs.

    A window of the block order is a set of blocks that is exactly used up, so its rows are the sample of ids: each must
    be logged once, and an id that is logged in two windows was taken twice.
    """
    draw = random.Random(seed)
    sizes = BatchSizes(GLOBAL // 2, [(40, GLOBAL)])
    order = Order([rows], None, seed, blocks=blocks())
    span = blocks().rows * blocks().window
    end = next(step for step in range(10**9) if sizes.span(step)[0] >= min(windows * span, rows))
    kept: dict[int, list[np.ndarray]] = {}
    step, kills, changes, wasted = 0, 0, 0, 0
    for world in stretches(draw):
        until = min(end, step + draw.randint(5, max(6, end // 6)))
        for number in range(step, until):
            kept[number] = list(ranks_logs(order, sizes, number, world))
        if until == end:
            break
        saved = max(step, until - draw.randint(0, 3))  # the last checkpoint before the kill
        for number in range(saved, until):
            del kept[number]  # trained, and lost with the kill
        kills, changes, wasted = kills + 1, changes + 1, wasted + until - saved
        step = saved
    logged = np.concatenate([log for logs in kept.values() for log in logs])
    ids, times = np.unique(logged, return_counts=True)
    wanted = np.unique(order.locate(np.arange(min(windows * span, rows))).row // blocks().rows)
    inside = np.isin(ids // blocks().rows, wanted)
    expected = sum(min(blocks().rows, rows - int(block) * blocks().rows) for block in wanted)
    return {
        "rows_logged": int(logged.size),
        "rows_audited": expected,
        "rows_twice": int((times > 1).sum()),
        "rows_missing": expected - int(inside.sum()),
        "kills": kills,
        "world_changes": changes,
        "steps_lost_to_kills": wasted,
    }


def stretches(draw: random.Random) -> Iterator[int]:
    """The number of ranks of each attempt, never the same twice in a row."""
    last = 0
    while True:
        yield (last := draw.choice([world for world in sorted(set(WORLDS)) if world != last]))


def ranks_logs(order: Order, sizes: BatchSizes, step: int, world: int) -> np.ndarray:
    """[ranks, rows] the row ids that each rank takes at a step, as `Stream.take` does."""
    size = sizes.span(step)[1]
    micro = size // world if step % 2 else max(1, size // world // 2)
    positions = [sizes.positions(step, rank, world, micro) for rank in range(world)]
    return order.locate(np.concatenate(positions)).row.reshape(world, -1)


if __name__ == "__main__":
    main()
