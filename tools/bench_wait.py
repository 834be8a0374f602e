"""How long does a step of the DistilBERT preset wait for its data?

    python tools/bench_wait.py --tokenizer FOLDER [--steps 6] [--json]

The preset's models (BERT-base with random weights, six layers of DistilBERT), rows of 512 masked tokens from prepared
shards, one process, micro-batches of its 5 rows. FOLDER holds BERT's tokenizer. The last line of --json is one object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megadistill.core.files import read_lines  # noqa: E402

MICRO = 5


def teacher(folder: Path) -> Path:
    """BERT-base, untrained: its time is the same."""
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig()).save_pretrained(folder)
    return folder


def waits(folder: Path, tokenizer: Path, steps: int) -> tuple[list[float], list[float]]:
    """(seconds waited, seconds) of each step but the first."""
    settings = [
        "name=waiting",
        f"directory={folder}",
        f"data.dir={folder / 'prepared'}",
        f"data.tokenizer={tokenizer}",
        "data.corpora=[{kind: synthetic, num_documents: 2000}]",
        "data.held_out.fraction=0.05",
        f"teacher.path={teacher(folder / 'teacher')}",
        "teacher.guard=null",
        f"batch={{global_size: {2 * MICRO}, micro_size: {MICRO}}}",
        "engine.precision=fp32",
        f"train.steps={steps}",
        "evaluate.rows=10",
        "log.every_steps=1",
    ]
    for verb in ("prepare", "train"):
        command = [sys.executable, "-m", "megadistill", verb, str(ROOT / "configs" / "distilbert.yaml"), *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    rows = [row for row in read_lines(folder / "waiting" / "metrics.jsonl") if "train/data_wait" in row][1:]
    seconds = [row["train/step_seconds"] for row in rows]
    return [row["train/data_wait"] * each for row, each in zip(rows, seconds, strict=True)], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="only the result, as the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        waited, seconds = waits(Path(folder), options.tokenizer.resolve(), options.steps)
    shares = [wait / whole for wait, whole in zip(waited, seconds, strict=True)]
    found: dict[str, Any] = {
        "steps": len(seconds),
        "step_seconds": statistics.median(seconds),
        "wait_seconds": statistics.median(waited),
        "share": statistics.median(shares),
        "largest_share": max(shares),
    }
    sys.stdout.write(json.dumps(found, indent=None if options.json else 2) + "\n")


if __name__ == "__main__":
    main()
