"""Word vectors in GloVe's text format (Pennington et al. 2014): `word number number ...` a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megadistill.core.errors import UserError


def read_vectors(path: Path, field: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(word, its vector) of each line, in the file's order; word2vec's first line, which gives sizes, is passed over.

    Args:
        field: of the config that names the file.

    Raises:
        UserError: no such file, or a line that is no vector; names the line.
    """
    width: int | None = None
    try:
        with open(path, encoding="utf-8", newline="\n") as handle:
            for number, line in enumerate(handle, 1):
                cells = line.rstrip("\r\n ").split(" ")
                if number == 1 and len(cells) == 2:
                    continue
                width = len(cells) - 1 if width is None else width
                # GloVe's largest file has words with spaces inside, such as ". . ."
                word, values = cells[: len(cells) - width], cells[len(cells) - width :]
                if width == 0 or not word or any(_is_number(part) for part in word[1:]):
                    raise _no_vector(path, number, line, f"{len(cells) - 1} numbers, and lines before it {width}")
                try:
                    vector = np.array(values, dtype=np.float32)
                except ValueError:
                    raise _no_vector(path, number, line, "it holds something else than numbers") from None
                if not np.isfinite(vector).all():
                    raise _no_vector(path, number, line, "a number is not finite")
                yield " ".join(word), vector
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {field} {path}", str(error), "give word vectors as text") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _no_vector(path: Path, number: int, line: str, why: str) -> UserError:
    return UserError(f"{path}:{number}: no word vector", f"{why}: {line[:60]!r}", "mend or remove that line")
