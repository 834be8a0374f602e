"""What do heartbeats, the journal and checkpoints cost a step?

    python tools/bench_overhead.py [--steps 40] [--every 10] [--json]

One process trains the quickstart's student and saves every so often: once writing at once, once while training goes on.
The shares are of the time between two saves, at the interval that the quickstart has (50 steps). What every step does
for safety besides (watchdog, heartbeat, control files, signals) is timed alone. The last line of --json is one
object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megadistill.core.files import read_lines  # noqa: E402
from megadistill.train import stop  # noqa: E402
from megadistill.train.watchdog import Watchdog  # noqa: E402

INTERVAL = 50


def train(folder: Path, steps: int, every: int, asynchronous: bool) -> tuple[float, list[float], list[float]]:
    """(seconds a step, seconds that each save stopped training, seconds until each was committed)."""
    name = "asynchronous" if asynchronous else "at_once"
    settings = [f"directory={folder}", f"name={name}", f"data.dir={folder / 'prepared'}", f"train.steps={steps}"]
    settings += [f"checkpoint.every_steps={every}", f"checkpoint.asynchronous={asynchronous}", "log.every_steps=1"]
    for verb in ("prepare", "train"):
        command = [sys.executable, "-m", "megadistill", verb, str(ROOT / "configs" / "quickstart.yaml"), *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    rows = [row["train/step_seconds"] for row in read_lines(folder / name / "metrics.jsonl") if "loss_hex" in row]
    saves = [row for row in read_lines(folder / name / "journal.jsonl") if row["event"] == "save"][1:]
    return statistics.median(rows[3:]), [s["training_stopped_seconds"] for s in saves], [s["seconds"] for s in saves]


def bookkeeping(folder: Path, times: int = 2000) -> float:
    """Seconds that a step's watchdog, heartbeat and look at the control files take."""
    (folder / "logs").mkdir()
    (folder / "control").mkdir()
    with Watchdog(folder, 1, 0, 120, 1800) as watchdog:
        started = time.perf_counter()
        for step in range(times):
            watchdog.enter("step", step)
            stop.word(folder / "control", True)
        return (time.perf_counter() - started) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="only the result, as the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found: dict[str, Any] = {"bookkeeping_seconds": bookkeeping(folder)}
        for asynchronous in (False, True):
            step, stopped, committed = train(folder, options.steps, options.every, asynchronous)
            found["asynchronous" if asynchronous else "at_once"] = {
                "step_seconds": step,
                "training_stopped_seconds": statistics.median(stopped),
                "committed_after_seconds": statistics.median(committed),
                "share_of_an_interval": statistics.median(stopped) / (INTERVAL * step),
            }
        found["bookkeeping_share_of_a_step"] = found["bookkeeping_seconds"] / found["at_once"]["step_seconds"]
    sys.stdout.write(json.dumps(found, indent=None if options.json else 2) + "\n")


if __name__ == "__main__":
    main()
