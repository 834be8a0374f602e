"""Tables of examples in files: TSV as GLUE writes it, CSV, JSON lines, parquet; every line with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from megadistill.core.errors import UserError
from megadistill.core.files import nearest


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    where: str
    """FILE:LINE, or FILE:row NUMBER where a format has no lines."""
    cells: dict[str, Any]

    def text(self, column: str) -> str:
        """Raises:
        UserError: the cell is missing, or is no text.
        """
        value = self.cells.get(column)
        if not isinstance(value, str):
            raise UserError(
                f"{self.where}: no text in column {column!r}",
                f"found {value!r}; the line has {', '.join(map(str, self.cells)) or 'nothing'}",
                "mend that line, or name another column",
            )
        return value

    def number_of(self, column: str, names: Sequence[str]) -> int:
        """The class that a cell names: one of `names`, or, where these are no numbers themselves, its number in them.

        Raises:
            UserError: it names none.
        """
        value = self.cells.get(column)
        if str(value).strip() in names:
            return names.index(str(value).strip())
        numbered = not any(name.lstrip("-").isdigit() for name in names)
        if numbered and str(value).strip() in (known := [str(number) for number in range(len(names))]):
            return known.index(str(value).strip())
        raise UserError(
            f"{self.where}: {value!r} is no label",
            f"column {column!r} may hold {', '.join(names)}",
            "mend that line; a test set has no labels to score against",
        )

    def value_of(self, column: str) -> float:
        """Raises:
        UserError: the cell is no finite number.
        """
        value = self.cells.get(column)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = float("nan")
        if not float("-inf") < number < float("inf"):
            raise UserError(f"{self.where}: {value!r} in column {column!r} is no number", "", "mend that line")
        return number


def read(path: Path, header: Sequence[str] | None = None, skip_short: bool = False) -> Iterator[Line]:
    """The lines of a file, by its ending: .tsv (no quoting, as GLUE's), .csv, .jsonl, .parquet.

    Args:
        header: a TSV's columns where the file does not name them.
        skip_short: leave out a TSV's lines that lack columns.

    Raises:
        UserError: it is not there, or a line of it cannot be read; names both.
    """
    if not path.is_file():
        raise UserError(f"no file {path}", "", "check the name; wildcards must match files")
    match path.suffix:
        case ".tsv":
            return _tsv(path, header, skip_short)
        case ".csv":
            return _csv(path)
        case ".jsonl":
            return _jsonl(path)
        case ".parquet":
            return _parquet(path)
    raise UserError(f"{path} has an ending that is not known", "", "use .tsv, .csv, .jsonl or .parquet")


def find(patterns: Sequence[str], field: str) -> list[Path]:
    """The files that patterns name, each pattern's in order of their names.

    Raises:
        UserError: one names none.
    """
    found = []
    for pattern in patterns:
        matches = sorted(glob(str(Path(pattern).expanduser())))
        if not matches:
            fix = there_is(pattern) + "check the path; it is relative to where you are"
            raise UserError(f"{field}: no file {pattern}", "", fix)
        found += [Path(match) for match in matches]
    return found


def there_is(path: str | Path) -> str:
    """The beginning of what to do about a path that is missing: what is there by nearly its name."""
    near = nearest(str(path))
    return f"there is {near}; " if near else ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered from 1; only a line feed ends one, for sentences may hold other separators."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as handle:
            for number, line in enumerate(handle, 1):
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8", str(error), "convert it") from None
    except OSError as error:
        raise UserError(f"cannot read {path}", str(error)) from None


def _tsv(path: Path, header: Sequence[str] | None, skip_short: bool) -> Iterator[Line]:
    for number, line in _lines(path):
        cells = line.split("\t")
        if not line and len(header or ()) != 1:
            continue
        if header is None:
            header = _told_apart(cells, f"{path}:{number}")
            continue
        if len(cells) < len(header):
            if skip_short:
                continue
            raise UserError(
                f"{path}:{number}: {len(cells)} column(s), and the table has {len(header)}",
                f"the line reads {line[:80]!r}",
                "mend that line, or set task.skip_short_lines where a published file has some (GLUE's QQP)",
            )
        yield Line(f"{path}:{number}", dict(zip(header, cells, strict=False)))


def _told_apart(header: list[str], where: str) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two columns {twice[0]!r}", "only one of them could be read", "rename one")
    return header


def _csv(path: Path) -> Iterator[Line]:
    header: list[str] | None = None
    reader = csv.reader((line + "\n" for _, line in _lines(path)), strict=True)
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = _told_apart(cells, f"{path}:{reader.line_num}")
            elif len(cells) != len(header):
                raise UserError(
                    f"{path}:{reader.line_num}: {len(cells)} column(s), and the table has {len(header)}",
                    "",
                    "quote cells that hold commas, or mend that line",
                )
            else:
                yield Line(f"{path}:{reader.line_num}", dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV", str(error), "mend that line") from None


def _jsonl(path: Path) -> Iterator[Line]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON", str(error), "write one object a line") from None
        if not isinstance(cells, dict):
            raise UserError(f"{path}:{number}: no object", f"found {line[:80]!r}", "write one object a line")
        yield Line(f"{path}:{number}", cells)


def _parquet(path: Path) -> Iterator[Line]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is no parquet file", str(error).splitlines()[0], "get it again") from None
    for number, row in enumerate(rows):
        yield Line(f"{path}:row {number}", row)
