"""Tar files of the webdataset kind: a member a document, told by its extension."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.corpora.files import LINE_BYTES, expand, open_file, unpacked, zstd_error

_AGAIN = "the file is damaged or cut short: get it again"


class WebDataset(Corpus):
    """.tar files, plain or .gz or .zst, whose members `<key>.<extension>` hold one document each."""

    kind: Literal["webdataset"] = "webdataset"
    files: list[str] = Field(min_length=1)
    """Paths, globs or fsspec urls."""
    extension: str = "txt"
    """The members to read: what follows the first dot of their names. Those of json hold an object."""
    field: str = "text"
    """The field of a json member that holds the text."""

    def sources(self) -> list[Source]:
        return expand(self.files, self.name)

    def documents(self, source: Source) -> Iterator[str]:
        seen = set()
        for name, data in _members(source, self.extension):
            where = f"{source.name} member {name}"
            if name in seen:
                raise UserError(f"{where} is there twice", "", "every key must be one sample of one place")
            seen.add(name)
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8", str(error), "write the tar again from text in UTF-8") from None
            yield self._from_json(text, where) if self.extension.rpartition(".")[2] == "json" else text

    def _from_json(self, text: str, where: str) -> str:
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON", str(error), f"set corpora ({self.name}): extension") from None
        if not isinstance(value, dict) or not isinstance(value.get(self.field), str):
            found = f"found {', '.join(value)}" if isinstance(value, dict) else f"found {type(value).__name__}"
            raise UserError(f"{where} has no text in field {self.field!r}", found, f"set corpora ({self.name}): field")
        found_text: str = value[self.field]
        return found_text


def _members(source: Source, extension: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file in a tar with this extension. `tarfile` ends at a damaged header as if it were the
    end of the archive; here only the block of zeros that closes every archive is taken for its end."""
    with open_file(source) as raw:
        stream = _Onward(unpacked(source.name, raw))
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
                for entry in tar:
                    wanted = entry.name.rpartition("/")[2].partition(".")[2] == extension
                    if wanted and entry.isfile() and (handle := tar.extractfile(entry)) is not None:
                        if entry.size > LINE_BYTES:
                            what = f"{source.name} member {entry.name} is longer than {LINE_BYTES / 1e6:,.0f} MB"
                            raise UserError(what, "a document is held in memory as a whole", "cut it into several")
                        yield entry.name, handle.read()
                    tar.members.clear()  # else it remembers every one
                end = tar.offset
        except (tarfile.TarError, EOFError, OSError, zlib.error, zstd_error()) as error:
            raise UserError(f"{source.name} cannot be read as a tar", str(error), _AGAIN) from None
        if len(stream.last) < tarfile.BLOCKSIZE:
            raise UserError(f"{source.name} is cut short", f"it ends at byte {end:,} without an end mark", _AGAIN)
        if any(stream.last):
            raise UserError(f"{source.name} is damaged", f"what stands at byte {end:,} is no member", _AGAIN)


class _Onward:
    """A stream that is only read on, as those that unpack can be, and remembers what it gave last."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._at, self.last = stream, 0, b""

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        self.last = self._stream.read(size)
        self._at += len(self.last)
        return self.last

    def seek(self, place: int) -> None:
        assert place >= self._at
        while place > self._at and self.read(min(place - self._at, LINE_BYTES)):
            pass
