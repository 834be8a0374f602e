"""How a teacher's answers lie on disk, and how they are found again by the rows that they answer.

A folder holds `index.json` and blocks. A block has two files: `000012.answers.npy`, one record for every attended
token of its rows, one row after another, and `000012.rows.npy`, each row's key and number of tokens. The key is a hash
of what the teacher read, so a row is found whatever its number, the order of training, or the number of ranks.

A record holds K entries of the vocabulary: ids (their lower 16 bits, and a byte above where the vocabulary needs it)
and, where the likeliest were kept, -log p in units of 1/2048 nat, in the first place not the likeliest's but that of
all that is missing: its own is what the others leave. So nothing is missing where nothing was, which no rounding of all
K would give. Of a sample, an id stands there as often as it was drawn.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write, sha256_file, sha256_json, write_json
from megadistill.core.schema import Strict
from megadistill.core.types import Batch, Kept
from megadistill.data.span import MOST_MAPPED

FORMAT_VERSION = 1
INDEX = "index.json"
UNITS = 2048
"""Of one nat: the error of a probability is 1 / 4096 of it, where fp16 would make it 1 / 500."""
NOTHING = 0xFFFF
"""The code of probabilities below exp(-32)."""
AGAIN = "run `megadistill prepare FILE`, which makes again what is missing, damaged or stale"

U64 = NDArray[np.uint64]


class Keep(Strict):
    """What is kept of each distribution."""

    kind: Literal["top_k", "sample"] = "top_k"
    """top_k: the likeliest entries with their probabilities; the rest counts as one more outcome. sample: entries drawn
    by their probabilities, so that the gradient is right in the mean (Anshumann et al. 2025, arXiv:2503.16870), and
    systematically (one draw of u, then the entries at (u + i) / N of the cumulated distribution), so that each comes
    the rounded number of times that it should."""
    entries: int = Field(8, gt=0)
    """How many: 2 bytes each (3 past 65,536 entries of vocabulary), and 2 more of top_k."""


class Block(Strict):
    """One block, as the index tells it."""

    rows: int
    tokens: int
    sha256: str
    """Of both files together."""


class Index(Strict):
    """What a finished folder holds."""

    format_version: int
    facts: dict[str, Any]
    """What decides the answers; see `CachedTeacher`."""
    weights: dict[str, str]
    """Folder of each model that answered -> sha256 of its files of weights."""
    vocabulary: int
    keep: Keep
    temperature: float
    blocks: list[Block]
    bytes: int
    """Of all blocks."""
    fingerprint: str

    def computed_fingerprint(self) -> str:
        return sha256_json(self.model_dump(exclude={"fingerprint"}))

    @property
    def tokens(self) -> int:
        return sum(block.tokens for block in self.blocks)


def record(keep: Keep, vocabulary: int) -> np.dtype[Any]:
    """The dtype of one token's record."""
    fields: list[Any] = [("low", "<u2", (keep.entries,))]
    if vocabulary > 1 << 16:
        fields.append(("high", "u1", (keep.entries,)))
    if keep.kind == "top_k":
        fields.append(("nats", "<u2", (keep.entries,)))
    return np.dtype(fields)


def row_keys(batch: Batch) -> U64:
    """[B] a hash of what the teacher reads of each row: its attended ids and their documents."""
    batch = batch.home
    ids, segments = (values.numpy().astype("<u4") for values in (batch.ids, batch.segments))
    keys = []
    for row, documents, mask in zip(ids, segments, batch.mask.numpy(), strict=True):
        digest = xxhash.xxh3_64(row[mask].tobytes())
        digest.update(documents[mask].tobytes())
        keys.append(digest.intdigest())
    return np.array(keys, dtype=np.uint64)


def chosen(p: Tensor, keep: Keep, u: Tensor) -> NDArray[Any]:
    """[N] the records of distributions `p` [N, V]; `u` [N] in [0, 1) decides what is drawn."""
    records = np.empty(len(p), record(keep, p.shape[1]))
    if keep.kind == "top_k":
        top = p.topk(keep.entries, dim=-1)
        ids = top.indices
        rest = (1 - top.values.double().sum(-1, keepdim=True)).clamp(min=0)
        if keep.entries == p.shape[1]:
            rest.zero_()
        told = torch.cat([rest, top.values[:, 1:].double()], dim=1)
        records["nats"] = (-UNITS * told.log()).round().clamp(max=NOTHING).cpu().numpy()
    else:
        steps = torch.arange(keep.entries, dtype=torch.float64, device=p.device)
        places = (u.to(p.device, torch.float64).unsqueeze(1) + steps) / keep.entries
        cumulated = p.double().cumsum(-1)
        ids = torch.searchsorted(cumulated, places * cumulated[:, -1:], right=True).clamp(max=p.shape[1] - 1)
    records["low"] = (ids & 0xFFFF).cpu().numpy()
    if "high" in (records.dtype.names or ()):
        records["high"] = (ids >> 16).cpu().numpy()
    return records


def read_back(records: NDArray[Any], index: Index) -> Kept:
    """What `chosen` made the records of, on the CPU."""
    low = records["low"].astype(np.int64)
    ids = torch.from_numpy(low if index.vocabulary <= 1 << 16 else low | (records["high"].astype(np.int64) << 16))
    if index.keep.kind == "top_k":
        codes = torch.from_numpy(records["nats"].astype(np.float64))
        told = torch.where(codes == NOTHING, 0.0, (codes / -UNITS).exp())
        first = (1 - told.sum(1, keepdim=True)).clamp(min=1e-6)
        log_probs = torch.cat([first, told[:, 1:]], dim=1).log().float()
        return Kept(ids, log_probs, ghost=True, temperature=index.temperature)
    # ids of a record ascend, so that equal ones stand together: the first gets the probability of all of them
    counts = (ids.unsqueeze(2) == ids.unsqueeze(1)).sum(2)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    log_probs = torch.where(first, (counts / index.keep.entries).log(), -torch.inf)
    return Kept(ids, log_probs, ghost=False, temperature=index.temperature)


def block_files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:06d}.answers.npy", folder / f"{number:06d}.rows.npy"


def write_block(folder: Path, number: int, records: NDArray[Any], keys: U64, tokens: Sequence[int]) -> None:
    """Write one block; it is there when its second file is."""
    answers, rows = block_files(folder, number)
    table = np.empty(len(keys), [("key", "<u8"), ("tokens", "<u4")])
    table["key"], table["tokens"] = keys, tokens
    for path, values in ((answers, records), (rows, table)):
        with atomic_write(path, "wb") as handle:
            np.save(handle, values)


def write_index(
    folder: Path, blocks: int, facts: dict[str, Any], weights: dict[str, str], vocabulary: int, keep: Keep, t: float
) -> Index:
    """Finish a folder of so many blocks."""
    found, size = [], 0
    for number in range(blocks):
        files = block_files(folder, number)
        table = np.load(files[1])
        size += sum(path.stat().st_size for path in files)
        found.append(Block(rows=len(table), tokens=int(table["tokens"].sum()), sha256=_sha256(files)))
    index = Index(
        format_version=FORMAT_VERSION,
        facts=facts,
        weights=weights,
        vocabulary=vocabulary,
        keep=keep,
        temperature=t,
        blocks=found,
        bytes=size,
        fingerprint="",
    )
    index = index.model_copy(update={"fingerprint": index.computed_fingerprint()})
    write_json(folder / INDEX, index.model_dump(mode="json"))
    return index


def read_index(folder: Path) -> Index:
    """Raises:
    UserError: there is none, or it is of another version, or altered.
    """
    try:
        index = Index.model_validate_json((folder / INDEX).read_bytes())
    except FileNotFoundError:
        raise UserError(f"no teacher's answers in {folder}", "", AGAIN) from None
    except ValidationError as error:
        raise UserError(f"{folder / INDEX} cannot be read", error.errors()[0]["msg"], AGAIN) from None
    if index.format_version != FORMAT_VERSION or index.fingerprint != index.computed_fingerprint():
        raise UserError(f"{folder / INDEX} was altered, or written by another version", "", AGAIN)
    return index


class Answers:
    """A finished folder, opened: sizes are checked at once, bytes when a block is first read."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        UserError: the folder is not finished, or a file is missing or cut short.
        """
        self.folder, self.index = folder, read_index(folder)
        tables = []
        dtype = record(self.index.keep, self.index.vocabulary)
        for number, block in enumerate(self.index.blocks):
            answers, rows = block_files(folder, number)
            try:
                tables.append(np.load(rows))
                records = np.load(answers, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise UserError(f"block {number} of {folder} is missing or cut short", str(error), AGAIN) from None
            if (len(tables[-1]), records.shape, records.dtype) != (block.rows, (block.tokens,), dtype):
                raise UserError(f"block {number} of {folder} is not what its index says", "", AGAIN)
        keys = np.concatenate([table["key"] for table in tables])
        self._order = np.argsort(keys, kind="stable")
        self._keys: U64 = keys[self._order]
        self._block = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        self._start = np.concatenate([np.cumsum(table["tokens"], dtype=np.int64) - table["tokens"] for table in tables])
        self._opened: dict[int, NDArray[Any]] = {}
        self._sound: set[int] = set()
        """Blocks whose bytes were checked."""

    def find(self, keys: U64) -> NDArray[np.int64]:
        """[B] the place of each row; -1 where there is none."""
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._order[at], -1)

    def records(self, places: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[Any]:
        """[N] the records of the `tokens`-th [N] attended token of the rows at `places` [N]."""
        result = np.empty(len(places), record(self.index.keep, self.index.vocabulary))
        blocks, at = self._block[places], self._start[places] + tokens
        for number in np.unique(blocks).tolist():
            here = blocks == number
            result[here] = self._open(number)[at[here]]
        return result

    def _open(self, number: int) -> NDArray[Any]:
        if number not in self._opened:
            files = block_files(self.folder, number)
            if number not in self._sound and _sha256(files) != self.index.blocks[number].sha256:
                raise UserError(f"{files[0]} is damaged", "its sha256 is not the one in the index", AGAIN)
            self._sound.add(number)
            if len(self._opened) == MOST_MAPPED:
                self._opened.clear()
            self._opened[number] = _mapped(files[0])
        return self._opened[number]


def _mapped(file: Path) -> NDArray[Any]:
    """The records in a file, mapped into memory; unlike numpy's mapping without a handle that stays open, of which a
    process may have a thousand."""
    with open(file, "rb") as handle:
        np.lib.format.read_magic(handle)
        _, _, dtype = np.lib.format.read_array_header_1_0(handle)
        start = handle.tell()
    whole = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    records: NDArray[Any] = whole.numpy()[start:].view(dtype)
    return records


def damaged_blocks(folder: Path, index: Index) -> list[int]:
    """Read every byte of a finished folder: the numbers of the blocks that are missing or not what was written."""

    def is_damaged(number: int) -> bool:
        files = block_files(folder, number)
        return not all(path.is_file() for path in files) or _sha256(files) != index.blocks[number].sha256

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter's lock
        found = pool.map(is_damaged, range(len(index.blocks)))
        return [number for number, damaged in enumerate(found) if damaged]


def _sha256(files: Sequence[Path]) -> str:
    return hashlib.sha256("".join(sha256_file(path) for path in files).encode()).hexdigest()
