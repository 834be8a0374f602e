"""Which files a pattern names, and how their lines are read, local or remote, plain or compressed."""

from __future__ import annotations

import glob
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Source

LINE_BYTES = 64_000_000
"""Longer lines are refused: a document is held in memory several times while it is tokenised."""


def expand(patterns: list[str], corpus: str) -> list[Source]:
    """The files of all patterns (paths, globs with `**`, or fsspec urls such as s3://...), sorted, each once.

    Raises:
        UserError: a pattern matches nothing.
    """
    found: dict[str, Source] = {}
    for pattern in patterns:
        matches = _remote(pattern) if "://" in pattern else _local(pattern)
        if not matches:
            raise UserError(
                f"corpus {corpus}: no file matches {pattern!r}",
                _what_is_there(pattern),
                "give paths relative to the folder you start from, or absolute ones",
            )
        found.update((source.name, source) for source in matches)
    return [found[name] for name in sorted(found)]


def open_file(source: Source) -> IO[bytes]:
    """The raw bytes of a source.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        if "://" not in source.name:
            return open(source.name, "rb")
        import fsspec  # type: ignore[import-untyped]

        handle: IO[bytes] = fsspec.open(source.name, "rb").open()
        return handle
    except OSError as error:
        raise UserError(f"cannot open {source.name}", str(error), "check that the file can be read") from None


def lines(source: Source) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its line end) of a UTF-8 file, unpacked if it ends in .gz or .zst.

    Raises:
        UserError: names the line that is not UTF-8 or too long, or says that the file is not compressed as its name
            says.
    """
    with open_file(source) as raw:
        number = 0
        try:
            stream = unpacked(source.name, raw)
            for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES + 1), b""), 1):
                if len(line) > LINE_BYTES:
                    raise UserError(
                        f"{source.name} line {number} is longer than {LINE_BYTES / 1e6:,.0f} MB",
                        "a line is one document, or a part of one, and is held in memory as a whole",
                        "break it into lines, for example with `fold -s -w 100000`, or into one document a line",
                    )
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            kind = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
            bad = error.object[error.start : error.start + 1].hex()
            raise UserError(
                f"{source.name} is not UTF-8",
                f"line {number}, byte {error.start + 1} of the line is 0x{bad}",
                f"convert the file, for example with `iconv -f {kind} -t utf-8`",
            ) from None
        except (EOFError, zlib.error, OSError, zstd_error()) as error:
            raise UserError(
                f"{source.name} cannot be unpacked",
                f"after line {number}: {error}",
                "the file is cut short, or not compressed as its name says: get it again",
            ) from None


def unpacked(name: str, raw: IO[bytes]) -> Any:
    """A stream of what is inside: of .gz and .zst what they pack, of others their bytes."""
    if name.endswith(".gz"):
        import gzip

        return gzip.open(raw)
    if name.endswith((".zst", ".zstd")):
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{name} needs the package zstandard", "", "pip install zstandard") from None
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    return raw


def zstd_error() -> type[Exception]:
    """What is raised for a damaged .zst."""
    try:
        from zstandard import ZstdError
    except ImportError:
        return EOFError
    return ZstdError


def _local(pattern: str) -> list[Source]:
    paths = [path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file()]
    stats = [(path, path.stat()) for path in paths]
    return [Source(str(path), f"{stat.st_size}:{stat.st_mtime_ns}", stat.st_size) for path, stat in stats]


def _remote(pattern: str) -> list[Source]:
    import fsspec

    try:
        files = fsspec.open_files(pattern, "rb")
        sizes = [file.fs.size(file.path) or 0 for file in files]
        return [
            Source(file.fs.unstrip_protocol(file.path), str(size), size)
            for file, size in zip(files, sizes, strict=True)
        ]
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"cannot list {pattern}", str(error), "check the url, your login and the network") from None


def _what_is_there(pattern: str) -> str:
    """The deepest folder of the pattern that exists, and some of what it holds."""
    if "://" in pattern:
        return ""
    folder = Path(pattern).absolute()
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} holds {', '.join(names[:6]) or 'nothing'}{', ...' if len(names) > 6 else ''}"
