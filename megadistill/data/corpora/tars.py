"""Tar files of the webdataset kind: a member a document, told by its extension."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.corpora.files import expand, open_file, unpacked

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
        for name, data in _members(source):
            key, _, extension = name.rpartition("/")[2].partition(".")
            if extension != self.extension:
                continue
            where = f"{source.name} member {name}"
            if name in seen:
                raise UserError(f"{where} is there twice", f"key {key}", "every key must be one sample of one place")
            seen.add(name)
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is not UTF-8", str(error), "write the tar again from text in UTF-8") from None
            yield self._from_json(text, where) if extension.rpartition(".")[2] == "json" else text

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


def _members(source: Source) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file in a tar. `tarfile` ends at a damaged header as if it were the end of the
    archive; here only the block of zeros that closes every archive is taken for its end."""
    with open_file(source) as raw:
        stream = unpacked(source.name, raw)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for entry in tar:
                    if entry.isfile() and (handle := tar.extractfile(entry)) is not None:
                        yield entry.name, handle.read()
                    tar.members.clear()  # type: ignore[attr-defined]  # else it remembers every one
                end = tar.offset
            stream.seek(end)
            block = stream.read(tarfile.BLOCKSIZE)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"{source.name} cannot be read as a tar", str(error), _AGAIN) from None
        if len(block) < tarfile.BLOCKSIZE:
            raise UserError(f"{source.name} is cut short", f"it ends at byte {end:,} without an end mark", _AGAIN)
        if any(block):
            raise UserError(f"{source.name} is damaged", f"what stands at byte {end:,} is no member", _AGAIN)
