"""Real articles, novels and tokenizers, where MEGADISTILL_DATA names them."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from megadistill.core.dist import World
from megadistill.core.types import IGNORE
from megadistill.data.config import DataConfig
from megadistill.data.prepare import prepare
from megadistill.data.reader import verify
from megadistill.data.stream import HeldOut, Stream
from megadistill.data.tokenization import SpecialIds, load_tokenizer


@pytest.mark.parametrize(
    ("name", "special", "size", "hello_world"),
    [
        ("bert-base-uncased", SpecialIds(0, 101, 102, 103, 100), 30522, [7592, 2088]),
        ("gpt2", SpecialIds(50256, None, 50256, None, None), 50257, [15496, 995]),
        ("albert-base", SpecialIds(0, 2, 3, 4, 1), 30000, [10975, 126]),
        ("t5-base", SpecialIds(0, None, 1, None, 2), 32000, [8774, 296]),
    ],
)
def test_published_tokenizers(real_data, name, special, size, hello_world):
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / name))
    assert tokenizer.special == special
    assert tokenizer.vocabulary_size == size
    assert tokenizer.encode("Hello world") == hello_world


@pytest.mark.parametrize("name", ["albert-base", "t5-base"])
def test_sentencepiece_models_encode_real_text_as_sentencepiece_does(real_data, name):
    import pyarrow.parquet as pq
    import sentencepiece

    table = pq.read_table(real_data / "books" / "train-00000-of-00004.parquet", columns=["text"])
    texts = [text for text in table["text"].to_pylist()[:400] if text.strip()]
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / name))
    original = sentencepiece.SentencePieceProcessor(model_file=str(real_data / "tokenizers" / name / "spiece.model"))
    spoken = [text.replace("``", '"').replace("''", '"') for text in texts]
    if name.startswith("albert"):  # as its authors: without accents, in lower case
        decomposed = (unicodedata.normalize("NFKD", text) for text in spoken)
        spoken = ["".join(c for c in text if not unicodedata.combining(c)).lower() for text in decomposed]
    expected = [original.encode(text) for text in spoken]
    got = tokenizer.encode_batch(spoken)
    same = sum(a == b for a, b in zip(got, expected, strict=True))
    assert same >= 0.97 * len(texts)  # where two ways to cut a word score the same, either may win


@pytest.mark.parametrize(("tokenizer", "targets"), [("bert-base-uncased", "mlm"), ("gpt2", "clm")])
def test_wikipedia_and_books_become_batches(real_data, tmp_path, tokenizer, targets):
    config = DataConfig.model_validate(
        {
            "dir": tmp_path,
            "tokenizer": str(real_data / "tokenizers" / tokenizer),
            "targets": {"kind": targets},
            "held_out": {"fraction": 0.1},
            "corpora": [
                {
                    "kind": "parquet",
                    "name": name,
                    "files": [str(real_data / folder / "train-00000-of-*.parquet")],
                    "join_rows": join_rows,
                    "max_documents": 30,
                }
                for name, folder, join_rows in (("wiki", "wikipedia", 1), ("books", "books", 20))
            ],
        }
    )
    stats = prepare(config, lambda line: None).corpora
    assert all(s.train.rows > 100 and s.train.padding_share < 0.01 and s.unknown_share < 0.01 for s in stats)
    assert all(verify(tmp_path / s.name / part) == [] for s in stats for part in ("train", "held_out"))
    batch = Stream(config, World(0, 2), 64, 32, 0).take(5)[0]
    share = (batch.labels != IGNORE).float().mean().item()
    assert share == pytest.approx(0.15 if targets == "mlm" else 0.99, abs=0.03)
    text = load_tokenizer(config.tokenizer).decode(batch.ids[0].tolist())
    assert np.mean([letter.isalpha() or letter == " " for letter in text]) > 0.7
    assert sum(b.ids.shape[0] for b in HeldOut(config).batches(8, 0, World(), 16)) == 16
