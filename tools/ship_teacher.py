"""Put a trained run's student where quickstart finds its teacher: bf16 safetensors beside the shipped tokenizer.

    python tools/ship_teacher.py runs/quickstart_teacher

The asset's README is written from the run's own files: command, steps, seconds, held-out loss.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

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
        AutoModelForMaskedLM.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(Path(folder) / "bf16")
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
            f"    {(run / 'command.txt').read_text().strip()}\n\n"
            f"{trained[-1]['step']:,} steps in {seconds / 3600:.2f} hours of training; held-out loss after step "
            f"{last['step']:,}: {last['heldout/loss']:.4f} nats, accuracy {last['heldout/accuracy']:.4f}.\n"
        )
    return (
        "# A tiny BERT for quickstart\n\n"
        "Six layers of width 128, uncased sentencepiece vocabulary of 4,096, pretrained by megadistill's own loop with\n"
        "`hard_ce` only on Python's and its packages' documentation, 4,747 English Wikipedia articles (CC BY-SA 3.0) and\n"
        "49 novels published before 1931. Weights are bf16. Commands, in order:\n\n" + "\n".join(parts)
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
