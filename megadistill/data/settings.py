"""Which settings decide the rows of a corpus, and whether its shards were prepared with those of a config."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_json
from megadistill.data.config import DataConfig
from megadistill.data.contamination import sources as evaluation_sources
from megadistill.data.corpora.base import Corpus
from megadistill.data.index import Index, read_index
from megadistill.data.statistics import STATS, read_stats
from megadistill.data.tokenization import Tokenizer

PREPARE_VERSION = 2
"""Part of the key; raise it when the same corpus would give other rows."""

_MIXING = {"weight", "repeats", "epochs"}
"""What a corpus says of how its rows are mixed with those of others."""


def hashed(config: DataConfig, corpus: Corpus, tokenizer: Tokenizer) -> str:
    """A hash of what decides the rows besides the sources."""
    against = config.decontaminate
    return sha256_json(
        {
            **_of_all(config),
            "version": PREPARE_VERSION,
            "corpus": corpus.model_dump(mode="json", exclude=_MIXING),
            "tokenizer": tokenizer.fingerprint,
            "sequence_length": config.sequence_length,
            "decontaminate": against and [against.words, [s.stamp for s in evaluation_sources(against)]],
        }
    )


def recorded(config: DataConfig, corpus: Corpus) -> dict[str, Any]:
    """What decides the rows besides files, wherever they lie, and besides what the index holds; by name in `data`."""
    against = config.decontaminate
    return {
        **_of_all(config),
        "corpora": corpus.model_dump(mode="json", exclude=_MIXING | {"name"} | corpus.places),
        "decontaminate": against and against.model_dump(mode="json", exclude={"files"}),
    }


def checked_index(config: DataConfig, corpus: Corpus, part: str, tokenizer: Tokenizer) -> Index:
    """The index of one part of a prepared corpus.

    Raises:
        UserError: not prepared, or prepared otherwise than the config says.
    """
    folder = config.dir / corpus.name / part
    index = read_index(folder)
    found, wanted = index.sequence_length, config.sequence_length
    if found != wanted:
        raise _prepared_otherwise(folder, f"rows of {found} tokens, data.sequence_length is {wanted}")
    if index.tokenizer != tokenizer.fingerprint:
        raise _prepared_otherwise(
            folder,
            f"made with another tokenizer than {config.tokenizer}: its fingerprint is "
            f"{index.tokenizer[:12]}, not {tokenizer.fingerprint[:12]}",
        )
    stats = read_stats(config.dir / corpus.name / STATS)
    if stats is not None and stats.made_with is not None:
        others = list(differences(stats.made_with, recorded(config, corpus), corpus.name))
        if others:
            raise _prepared_otherwise(folder, "; ".join(others))
    return index


def _of_all(config: DataConfig) -> dict[str, Any]:
    near = config.near_duplicates
    return {
        "packing": config.packing,
        "held_out": config.held_out.model_dump(mode="json"),
        "near_duplicates": near and near.model_dump(mode="json"),
    }


def differences(then: Any, now: Any, corpus: str, at: str = "data") -> Iterator[str]:
    """A line for every setting that differs; one that only a side knows is passed over."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted(then.keys() & now.keys()):
            place = f"{at}.{name} ({corpus})" if name == "corpora" else f"{at}.{name}"
            yield from differences(then[name], now[name], corpus, place)
    elif then != now:
        yield f"{at} was {json.dumps(then)}, and is {json.dumps(now)}"


def _prepared_otherwise(folder: Path, why: str) -> UserError:
    return UserError(f"{folder} was prepared otherwise", why, "run `megadistill prepare FILE`, or set another data.dir")
