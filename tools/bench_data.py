"""How fast data is prepared and read, as ratios against the field's libraries in one run on the same rows.

    python tools/bench_data.py --json     (real Wikipedia where MEGADISTILL_DATA names it, else made-up text)
    python tools/bench_data.py --json --megabytes 4 --rows 4000 --repeats 1      (a quick look)

- prepare_vs_encode_batch: seconds of `prepare` over seconds of the tokenizer's own `encode_batch` on the same text with
  as many cores; processes are started, hashes and shards written within the time.
- read_vs_webdataset: rows/s of shuffled reading over webdataset's with one-row members, its shuffle buffer and a
  DataLoader.
- read_vs_datasets: the same over `datasets` streaming from parquet with its shuffle buffer.
- sequential_vs_webdataset: rows/s in order over plain webdataset on the same shards, both decoding to arrays.
- resume_far_vs_near: seconds to the first batch of a reader that starts at row 10^8 over one that starts at row 10.

Rows are read from --tars files that the prepared ones fill over and over, since start-up would decide over fewer.

Every figure is the best of `--repeats` turns, the contestants taking turns, so that a busy machine slows them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megadistill.data.documents import read
from megadistill.data.index import write_index
from megadistill.data.reader import Shards
from megadistill.data.shards import ShardWriter, npy
from megadistill.data.tokenization import load_tokenizer
from megadistill.data.workers import cores

if TYPE_CHECKING:
    from megadistill.data.config import DataConfig

# What imports torch is imported where it is used: the processes that `prepare` starts read this file again, as they
# would read the command line's, which imports next to nothing.

BUFFER = 1000
"""Rows in the shuffle buffers of the others; webdataset's and datasets' documentation use as many."""

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=40.0, help="text to prepare")
    parser.add_argument("--rows", type=int, default=40_000, help="rows to read in each turn")
    parser.add_argument("--tars", type=int, default=16, help="that the rows to read are spread over")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the others' DataLoader")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = config_of(folder, options.megabytes, options.length)
        found = preparing(config, options.repeats)
        found |= reading(folder, filled(folder, config, options.rows, options.tars), options)
    for name, value in found.items():
        print(f"{name:>28}: {value:,.4g}")
    names = ("prepare_vs_encode_batch", "read_vs_webdataset", "read_vs_datasets", "sequential_vs_webdataset")
    ratios = {name: round(found[name], 3) for name in (*names, "resume_far_vs_near")}
    if options.json:
        print(json.dumps({"ratios": ratios, "figures": found, "options": vars(options), "cores": cores()}))


def best(repeats: int, *turns: Callable[[], float]) -> list[float]:
    """The least seconds of each contestant, taking turns."""
    times = [[turn() for turn in turns] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------ prepare


def config_of(folder: Path, megabytes: float, length: int) -> DataConfig:
    from megadistill.data.config import DataConfig

    data = os.environ.get("MEGADISTILL_DATA")
    tokenizer = "megadistill/assets/quickstart_teacher"
    corpus: dict[str, Any] = {"kind": "synthetic", "num_documents": max(1, int(megabytes * 1e6 / 1400))}
    if data:
        tokenizer = f"{data}/tokenizers/bert-base-uncased"
        files = sorted(map(str, (Path(data) / "wikipedia").glob("*.parquet")))
        corpus = {"kind": "parquet", "files": files[: max(1, round(megabytes / 5))]}  # which hold about 5 MB each
    values = {"dir": folder / "shards", "tokenizer": tokenizer, "sequence_length": length, "corpora": [corpus]}
    return DataConfig.model_validate(values)


def preparing(config: DataConfig, repeats: int) -> dict[str, float]:
    from megadistill.data.prepare import prepare

    corpus = config.corpora[0]
    texts = list(read(corpus, corpus.sources()))
    backend = load_tokenizer(config.tokenizer).backend
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    def ours() -> float:
        for path in config.dir.rglob(f"{corpus.name}/stats.json"):
            path.unlink()  # else it is prepared already
        return timed(lambda: prepare(config, lambda line: None))

    def theirs() -> float:
        return timed(lambda: [e.ids for e in backend.encode_batch(texts, add_special_tokens=False)])

    mine, its = best(repeats, ours, theirs)
    size = sum(map(len, texts)) / 1e6
    return {"prepare_mb_per_s": size / mine, "encode_batch_mb_per_s": size / its, "prepare_vs_encode_batch": mine / its}


# ------------------------------------------------------------------------------------------ read


def filled(folder: Path, config: DataConfig, rows: int, tars: int) -> DataConfig:
    """So many rows in so many tars, of those that `config` has prepared, as if each tar came from a file of its own."""
    from megadistill.data.stream import COUNTS

    name = config.corpora[0].name
    prepared, target = config.dir / name, folder / "filled" / name
    shards, made = Shards(prepared / "train"), []
    (target / "train").mkdir(parents=True)
    for task, numbers in enumerate(np.array_split(np.arange(rows) % len(shards), tars)):
        writer = ShardWriter(target / "train", name, task, shards.index.vocabulary_size)
        writer.add(*shards.rows(numbers))
        made += writer.finish()
    about = shards.index.model_dump(include={"sequence_length", "dtype", "tokenizer", "vocabulary_size", "special_ids"})
    write_index(target / "train", name, about, made, shards.index.rows_per_member)
    shutil.copy(prepared / COUNTS, target / COUNTS)
    return config.model_copy(update={"dir": folder / "filled"})


def reading(folder: Path, config: DataConfig, options: argparse.Namespace) -> dict[str, float]:
    from megadistill.core.dist import World
    from megadistill.data.stream import Stream

    part = config.dir / config.corpora[0].name / "train"
    shards, number = Shards(part), options.rows
    one_row, parquet = folder / "one-row", folder / "rows.parquet"
    write_one_row_members(shards, number, one_row)
    write_parquet(shards, number, parquet)
    tars = [str(path) for path in sorted(part.glob("*.tar"))]
    stream = Stream(config, World(), BATCH, BATCH, 0)

    def ours() -> float:
        def read() -> None:
            for step in range(number // BATCH):
                stream.part.shards[0].rows(stream.places(step).row)

        return timed(read)

    def theirs() -> float:
        return timed(lambda: drain(webdataset_loader(one_row, options.workers), number // BATCH))

    def hugging_face() -> float:
        return timed(lambda: drain(datasets_loader(parquet, options.workers), number // BATCH))

    def in_order() -> float:
        opened = Shards(part)
        step = opened.index.rows_per_member  # as many as plain webdataset yields
        runs = (np.arange(start, min(start + step, number)) for start in range(0, number, step))
        return timed(lambda: drain(map(opened.rows, runs), None))

    def plain() -> float:
        return timed(lambda: drain(plain_webdataset(tars), None))

    shuffled, wds, hf, sequential, plain_wds = best(options.repeats, ours, theirs, hugging_face, in_order, plain)
    far, near = best(options.repeats * 3, lambda: first_batch(config, 10**8), lambda: first_batch(config, 10))
    rows = number // BATCH * BATCH
    return {
        "rows": number,
        "read_rows_per_s": rows / shuffled,
        "webdataset_rows_per_s": rows / wds,
        "datasets_rows_per_s": rows / hf,
        "sequential_rows_per_s": number / sequential,
        "plain_webdataset_rows_per_s": number / plain_wds,
        "resume_far_seconds": far,
        "resume_near_seconds": near,
        "read_vs_webdataset": wds / shuffled,
        "read_vs_datasets": hf / shuffled,
        "sequential_vs_webdataset": plain_wds / sequential,
        "resume_far_vs_near": far / near,
    }


def first_batch(config: DataConfig, row: int) -> float:
    from megadistill.core.dist import World
    from megadistill.data.stream import Stream

    return timed(lambda: Stream(config, World(), BATCH, BATCH, 0).take(row // BATCH))


def drain(batches: Iterable[Any], number: int | None) -> None:
    for _ in islice(batches, number):
        pass


def write_one_row_members(shards: Shards, number: int, folder: Path) -> None:
    """The rows as webdataset users store samples: one a key, in tars of 2,000."""
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=2000, verbose=0) as writer:
        for start in range(0, number, 1000):
            chosen = np.arange(start, min(start + 1000, number))
            for row, tokens, segments in zip(chosen, *shards.rows(chosen), strict=True):
                members = {"tokens.npy": npy(tokens.astype(np.uint16)), "segments.npy": npy(segments.astype(np.uint16))}
                writer.write({"__key__": f"{row:010d}", **members})


def write_parquet(shards: Shards, number: int, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokens, segments = shards.rows(np.arange(number))
    names = ("tokens", "segments")
    columns = [pa.array(list(array.astype(np.uint16)), pa.list_(pa.uint16())) for array in (tokens, segments)]
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path, row_group_size=1000)


def webdataset_loader(folder: Path, workers: int) -> Iterable[Any]:
    import torch.utils.data
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, workersplitter=webdataset.split_by_worker)
    data = data.shuffle(BUFFER).decode().to_tuple("tokens.npy", "segments.npy").batched(BATCH)
    return torch.utils.data.DataLoader(data, batch_size=None, num_workers=min(workers, len(urls)))


def datasets_loader(path: Path, workers: int) -> Iterable[Any]:
    import datasets
    import torch.utils.data

    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    rows = rows.shuffle(seed=0, buffer_size=BUFFER).with_format("numpy")
    return torch.utils.data.DataLoader(rows, batch_size=BATCH, num_workers=1 if workers else 0, collate_fn=stacked)


def stacked(rows: Sequence[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [np.stack([row[name] for row in rows]) for name in ("tokens", "segments")]


def plain_webdataset(urls: list[str]) -> Iterable[Any]:
    import webdataset

    return webdataset.WebDataset(urls, shardshuffle=False).decode().to_tuple("tokens.npy", "segments.npy")


if __name__ == "__main__":
    main()
