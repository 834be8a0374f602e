"""What the data tests share: a tiny tokenizer, made-up text, and a corpus prepared from it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megadistill.data import shards
from megadistill.data.config import DataConfig
from megadistill.data.prepare import prepare
from megadistill.testing.shard_files import ABOUT

WORDS = [a + b + c for a in ("ba", "de", "fi", "go", "lu") for b in ("n", "r", "s", "t") for c in ("", "a", "o")]


def make_documents(count: int, seed: int = 0, words: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(20, words))) for _ in range(count)]


@pytest.fixture
def documents() -> Callable[..., list[str]]:
    """`documents(count, seed)`: made-up documents of 20 to 60 words."""
    return make_documents


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece vocabulary of 65 tokens: the words, and five special ones."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> DataConfig:
    """Two prepared corpora of made-up text, rows of 32 tokens."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, count in (("one", 300), ("two", 120)):
        (folder / f"{name}.txt").write_text("\n".join(make_documents(count, seed=count)))
    config = DataConfig.model_validate(
        {
            "dir": folder / "shards",
            "tokenizer": str(tokenizer_folder),
            "sequence_length": 32,
            "held_out": {"fraction": 0.1},
            "corpora": [
                {"kind": "text", "name": name, "files": [str(folder / f"{name}.txt")], "document": "line"}
                for name in ("one", "two")
            ],
        }
    )
    prepare(config, lambda line: None)
    return config


@pytest.fixture
def changed() -> Callable[..., DataConfig]:
    """`changed(config, key=value)`: a checked copy of a config with other top-level values."""

    def change(config: DataConfig, **values: Any) -> DataConfig:
        return DataConfig.model_validate(config.model_dump() | values)

    return change


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real corpora and tokenizers that MEGADISTILL_DATA names."""
    folder = os.environ.get("MEGADISTILL_DATA")
    if not folder:
        pytest.skip("MEGADISTILL_DATA is not set: no real data to test on")
    return Path(folder)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """1100 rows, written so that they take several members and tars."""
    monkeypatch.setattr(shards, "ROWS_PER_MEMBER", 100)
    monkeypatch.setattr(shards, "SHARD_BYTES", 30_000)
    rng = np.random.default_rng(0)
    return rng.integers(5, 500, (1100, 16)), np.ones((1100, 16), dtype=np.uint16)


@pytest.fixture
def folder(tmp_path: Path, rows: tuple[Any, Any]) -> Path:
    """Those rows on disk."""
    (tmp_path / "shards").mkdir()
    shards.write_shards(tmp_path / "shards", "text", ABOUT, [rows])
    return tmp_path / "shards"
