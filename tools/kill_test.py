"""Does a run survive being killed anywhere? Kills random ranks at random moments and at every step of the commit
protocol, starts the same command again each time, and audits what the ranks and the checkpoints tell afterwards.

    python tools/kill_test.py --kills 50 [--asynchronous] [--folder DIR] [--seed N] [--json]

Against an uninterrupted run of the same config: P1, no committed checkpoint is lost, and no more than one save
interval of steps is ever repeated; P2, losses and parameter hashes are the same bit for bit; P4, from the rows that
the ranks wrote down, each row is trained on once per epoch. The last line of --json is one object. With checkpoints
that are written while training goes on (--asynchronous), the steps made meanwhile are lost on top of the interval.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # megadistill.testing is in no wheel's public part

from megadistill.core.faults import PLACES, VARIABLE
from megadistill.core.files import read_lines, write_json
from megadistill.engine import checkpoint
from megadistill.run.directory import RunDirectory
from megadistill.testing import processes, workspace
from megadistill.testing.traces import trace

RANKS, EVERY = 2, 5
STEPS_A_KILL = 12
"""How much longer the run is for every kill, so that it does not end before the last of them."""


class KillTest:
    """One config, an uninterrupted run of it, and one that is killed."""

    def __init__(self, folder: Path, kills: int, seed: int, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.folder, self.kills, self.draw = folder, kills, random.Random(seed)
        self.steps = STEPS_A_KILL * kills + 2 * EVERY
        self.config = workspace.make(folder)
        self.run = folder / "runs" / "killed"
        self.committed_lost = 0
        self.longest_repeat = 0
        self.killed_at: Counter[str] = Counter()

    def command(self, name: str) -> list[str]:
        settings = [f"name={name}", f"train.steps={self.steps}", f"checkpoint.every_steps={EVERY}", "log.rows=true"]
        settings += ["evaluate.every_steps=7", f"checkpoint.asynchronous={self.asynchronous}"]
        return ["-m", "megadistill", "train", str(self.config), *settings]

    def go(self) -> dict[str, Any]:
        """All kills, the last start that ends well, and what the audit finds."""
        self.prepare_under_kills(min(5, self.kills))
        started = time.monotonic()
        processes.run(self.command("whole"), RANKS, timeout=3600)
        whole_seconds = time.monotonic() - started
        for number in range(self.kills):
            self.one_kill(number, pace=whole_seconds / self.steps)
        processes.run(self.command("killed"), RANKS, timeout=3600)
        whole, ours = trace(self.folder / "runs" / "whole"), trace(self.run)
        twice, missing, rows = self.audit_rows()
        return {
            "kills": self.kills,
            "asynchronous": self.asynchronous,
            "killed_at": dict(self.killed_at),
            "steps": self.steps,
            "committed_checkpoints_lost": self.committed_lost,
            "max_intervals_lost": self.longest_repeat / EVERY,
            "rows_audited": rows,
            "rows_twice": twice,
            "rows_missing": missing,
            "bitwise": ours == whole and len(whole) == self.steps,
        }

    def prepare_under_kills(self, kills: int) -> None:
        """Kill `prepare` a few times, too; the last one ends well."""
        command = [sys.executable, "-m", "megadistill", "prepare", str(self.config)]
        for _ in range(kills):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
            time.sleep(self.draw.uniform(1, 8))
            process.kill()
            process.wait()
            self.killed_at["prepare"] += 1
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def one_kill(self, number: int, pace: float) -> None:
        """Start, kill one rank somewhere, and see what the next start would find."""
        before = max((int(file.stem) for file in (self.run / "attempts").glob("*.json")), default=0)
        rank = self.draw.randrange(RANKS)
        fault = self.draw.choice(PLACES) if number % 2 else None
        if fault is not None and fault.partition(".")[2] in ("described", "renamed", "trashed"):
            rank = 0  # who does these things
        environ = {VARIABLE: f"{fault}:{rank}"} if fault else {}
        ranks = processes.launch(self.command("killed"), RANKS, environ, cold=True)  # its imports are killed too
        if fault is None:
            self.wait_for_steps(ranks, before, self.draw.choice([0, 0, 1, 3, 6, 9]))
            time.sleep(self.draw.uniform(0, 6 * pace))
            ranks[rank].send_signal(signal.SIGKILL)
        try:
            ranks[rank].wait(timeout=120)
        finally:
            time.sleep(self.draw.uniform(0, 1))  # its peers go on, or hang, for a moment, as under any launcher
            for other in ranks:
                other.kill()
                other.communicate()
        self.killed_at[fault or "anywhere"] += 1
        self.look(last_step(self.run))

    def wait_for_steps(self, ranks: list[subprocess.Popen[str]], before: int, wanted: int) -> None:
        """Until this start has written down so many steps; somewhere in its imports when none is wanted."""
        if wanted == 0:
            time.sleep(self.draw.uniform(0, 8))
            return
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and all(rank.poll() is None for rank in ranks):
            rows = read_lines(self.run / "metrics.jsonl")
            if sum(row["attempt"] > before for row in rows) >= wanted:
                return
            time.sleep(0.05)

    def look(self, reached: int) -> None:
        """Every checkpoint that was ever committed must verify, and the newest must be near."""
        journal = read_lines(self.run / "journal.jsonl")
        saved = max((row["step"] for row in journal if row["event"] == "save"), default=0)
        there = {step for step, _, _ in checkpoint.committed(self.run / "checkpoints")}
        damaged = checkpoint.verify(self.run / "checkpoints")
        newest = max(there, default=0)
        self.committed_lost += len(damaged) + (newest < saved)
        self.longest_repeat = max(self.longest_repeat, reached - newest)
        sys.stderr.write(f"kill {sum(self.killed_at.values())}: step {reached}, newest checkpoint {newest}\n")

    def audit_rows(self) -> tuple[int, int, int]:
        """(rows trained on twice in an epoch, rows left out of one, rows looked at), by the ranks' own words; the last
        epoch may have been begun only."""
        history = RunDirectory(self.run).history()
        lines = [row for file in sorted((self.run / "logs").glob("rows-rank-*.jsonl")) for row in read_lines(file)]
        steps: dict[int, dict[int, list[Any]]] = {}
        for line in lines:
            pairs = list(zip(line["rows"], line["inputs"], line["labels"], strict=True))
            steps.setdefault(line["step"], {}).setdefault(line["attempt"], []).extend(pairs)
        trained: list[Any] = []
        for step in range(1, self.steps + 1):
            survived = max(attempt for attempt in steps[step] if checkpoint.on_line(history, step, attempt))
            trained += steps[step][survived]
        epoch = json.loads((self.folder / "prepared" / "text" / "stats.json").read_text())["train"]["rows"]
        twice = missing = 0
        for at in range(0, len(trained), epoch):
            rows = trained[at : at + epoch]
            seen = Counter(row for row, _, _ in rows)
            twice += sum(count - 1 for count in seen.values())
            missing += len(rows) - len(seen) if len(rows) < epoch else epoch - len(seen)
        return twice, missing, len(trained)


def last_step(run: Path) -> int:
    """The furthest step that any attempt wrote down."""
    return max((row["step"] for row in read_lines(run / "metrics.jsonl")), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--asynchronous", action="store_true", help="write checkpoints while training goes on")
    parser.add_argument("--folder", type=Path, help="an empty one, kept; else a temporary one")
    parser.add_argument("--json", action="store_true", help="only the result, as the last line")
    parser.add_argument("--output", type=Path, help="also write the result there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        result = KillTest(folder, options.kills, options.seed, options.asynchronous).go()
        result["seconds"] = round(time.monotonic() - started)
    if options.output is not None:
        write_json(options.output, result)
    sys.stdout.write(json.dumps(result, indent=None if options.json else 2) + "\n")
    good = result["bitwise"] and not any(
        result[key] for key in ("committed_checkpoints_lost", "rows_twice", "rows_missing")
    )
    sys.exit(0 if good and result["max_intervals_lost"] <= (2 if options.asynchronous else 1) else 1)


if __name__ == "__main__":
    main()
