"""Put a trained run's student where quickstart finds its teacher: bf16 safetensors beside the shipped tokenizer.

    python tools/ship_teacher.py runs/quickstart_teacher

The asset's README is written from the run's own files: command, steps, seconds, held-out loss.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from megadistill.core.files import read_lines
from megadistill.export.hf import export

ASSET = Path(__file__).resolve().parents[1] / "megadistill" / "assets" / "quickstart_teacher"
LIMIT = 4_000_000
"""Bytes that the whole asset may have."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="the run, preceded by those it was continued from")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain = export(options.runs[-1], Path(folder) / "hf")
        AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(Path(folder) / "bf16")
        for name in ("config.json", "model.safetensors"):
            shutil.copy(Path(folder) / "bf16" / name, ASSET / name)
    (ASSET / "README.md").write_text(card(options.runs), encoding="utf-8")
    size = sum(file.stat().st_size for file in ASSET.iterdir())
    assert size <= LIMIT, f"{ASSET} has {size:,} bytes, more than {LIMIT:,}"
    sys.stdout.write(f"{ASSET}: {size:,} bytes\n")


def card(runs: list[Path]) -> str:
    """What the asset is and how it came to be."""
    parts = []
    for run in runs:
        rows = read_lines(run / "metrics.jsonl")
        trained = [row for row in rows if "train/step_seconds" in row]
        seconds = sum(row["seconds"] for row in _attempts(rows))
        last = [row for row in rows if "heldout/loss" in row][-1]
        parts.append(
            f"    {_command(run)}\n\n"
            f"{trained[-1]['step']:,} steps in {seconds / 3600:.2f} hours of training; held-out loss after step "
            f"{last['step']:,}: {last['heldout/loss']:.4f} nats, accuracy {last['heldout/accuracy']:.4f}.\n"
        )
    return TEXT + "\n".join(parts)


TEXT = """# A tiny GPT-2 for quickstart

Six layers of width 128, an uncased sentencepiece vocabulary of 4,096, weights in bf16. Pretrained by megadistill's own
loop (`hard_ce`, no teacher) on the documentation of Python and its packages, 4,747 English Wikipedia articles
(CC BY-SA 3.0) and 49 novels published before 1931. The tokenizer was trained on 24 MB of the same text:

    python tools/train_tokenizer.py configs/quickstart_teacher.yaml FILES --megabytes 24 \\
        --output megadistill/assets/quickstart_teacher

Where `FILES` stands, `data.corpora.1.files` and `data.corpora.2.files` name the Wikipedia and the novels. Commands, in
order:

"""


def _command(run: Path) -> str:
    """As it was typed, without this machine's folders."""
    words = shlex.split((run / "command.txt").read_text())[1:]
    return "megadistill " + " ".join(
        "FILES" if word.startswith("data.corpora.1.files") else word
        for word in words
        if not word.startswith("data.corpora.2.files")
    )


def _attempts(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The seconds between each attempt's first and last line."""
    from datetime import datetime

    spans: dict[float, list[float]] = {}
    for row in rows:
        spans.setdefault(row["attempt"], []).append(datetime.fromisoformat(str(row["time"])).timestamp())
    return [{"seconds": max(times) - min(times)} for times in spans.values()]


if __name__ == "__main__":
    main()
