"""A folder of small shards, and how one of them is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megadistill.data.shards import Layout

ABOUT: dict[str, Any] = {
    "sequence_length": 16,
    "tokenizer": "abc",
    "vocabulary_size": 500,
    "special_ids": {"pad": 0, "cls": 2, "sep": 3},
}
"""What `write_shards` is told of rows of 16 tokens."""


def tars(folder: Path) -> list[Path]:
    """The shards, in order."""
    return sorted(folder.glob("*.tar"))


def token_at(member: int) -> int:
    """Offset of the first token of a whole member of 100 rows."""
    return int(Layout(100, 16, 2).row(member, 0, 100)[0])


def flip(path: Path, offset: int) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
