"""Print rows of prepared shards as text, document by document.

    python tools/show_shard.py prepared/x/wiki/train --rows 0 5000 --tokenizer bert-base-uncased
    python tools/show_shard.py prepared/x/wiki/train      (what the folder holds, and its first row)

Without --tokenizer the ids are shown. The tokenizer must be the one that the shards were made with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from megadistill.core.errors import UserError
from megadistill.data.reader import Shards
from megadistill.data.tokenization import load_tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a part of a prepared corpus, such as prepared/x/wiki/train")
    parser.add_argument("--rows", type=int, nargs="+", default=[0])
    parser.add_argument("--tokenizer", help="folder, file or hub name; as data.tokenizer")
    options = parser.parse_args()
    try:
        show(options.folder, options.rows, options.tokenizer)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def show(folder: Path, numbers: list[int], tokenizer_name: str | None) -> None:
    """Write what a folder holds, and the rows with these numbers, to stdout."""
    shards = Shards(folder)
    index = shards.index
    print(
        f"{folder}: {index.rows:,} rows of {index.sequence_length} tokens in {index.shards:,} tars "
        f"({index.bytes / 1e6:,.1f} MB), vocabulary {index.vocabulary_size:,}, special ids {index.special_ids}"
    )
    tokenizer = None if tokenizer_name is None else load_tokenizer(tokenizer_name)
    if tokenizer is not None and tokenizer.fingerprint != index.tokenizer:
        raise UserError(
            f"{folder} was made with another tokenizer than {tokenizer_name}", "", "give --tokenizer its own"
        )
    beyond = [number for number in numbers if not 0 <= number < index.rows]
    if beyond:
        raise UserError(
            f"{folder} has no row {beyond[0]}", f"its rows are 0 to {index.rows - 1}", "give --rows of these"
        )
    for number, tokens, segments in zip(numbers, *shards.rows(np.array(numbers)), strict=True):
        shard = int(shards.shards_of(np.array([number]))[0])
        print(f"\nrow {number}, in {shards.name(shard)}, {(segments == 0).mean():.1%} padding")
        for segment in range(1, int(segments.max()) + 1):
            ids = tokens[segments == segment].tolist()
            print(f"  [{segment}] {len(ids)} tokens: {ids if tokenizer is None else tokenizer.decode(ids)}")


if __name__ == "__main__":
    sys.exit(main())
