"""Train a sentencepiece unigram tokenizer on a config's corpora and write it as a Hugging Face folder.

    python tools/train_tokenizer.py configs/quickstart_teacher.yaml --vocabulary 4096 --output FOLDER

The shipped quickstart tokenizer was made by this command, which draws lines from whole corpora; `prepare` trains
one too (`data.train_tokenizer`), from the beginnings of their files. Its normalisation (uncased, as ALBERT's) lies
outside the sentencepiece model; letters unseen in training become [UNK].
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from megadistill.core.schema import override, read_yaml
from megadistill.data.corpora.base import Corpus
from megadistill.data.spiece import fold
from megadistill.data.tokenizer_training import SPECIAL, train_pieces, write_huggingface
from megadistill.run.config import check


def sentences(corpora: list[Corpus], megabytes: float, seed: int) -> Iterator[str]:
    """Lines of every corpus in equal shares, drawn at random over its documents."""
    draw = random.Random(seed)
    for corpus in corpora:
        documents = [d for source in corpus.sources() for d in corpus.documents(source)]
        draw.shuffle(documents)
        budget = megabytes * 1e6 / len(corpora)
        for document in documents:
            for line in document.splitlines():
                if line.strip() and budget > 0:
                    budget -= len(line)
                    yield fold(line[:4000])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--megabytes", type=float, default=30.0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    config = check(override(read_yaml(options.config), options.overrides), str(options.config))
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_pieces(
        options.output,
        sentences(config.data.corpora, options.megabytes, config.seed),
        "unigram",
        options.vocabulary,
        normalization_rule_name="identity",
        user_defined_symbols=[SPECIAL[4]],
        num_threads=2,
    )
    write_huggingface(options.output, tokenizer.backend, model_max_length=128)
    sys.stdout.write(f"{options.output}: {tokenizer.vocabulary_size} entries\n")


if __name__ == "__main__":
    main()
