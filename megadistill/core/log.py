"""Where messages go: rank 0's to the console, every rank's to its own file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

_NAME = "megadistill"


class _Console(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stdout` is at the time, so that a progress bar can put lines above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()  # without a traceback: that is for the file, and Python prints its own
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def setup(rank: int, file: Path | None = None) -> logging.Logger:
    """Send messages to the console (rank 0 only) and, when given, to `file`; replaces an earlier set-up."""
    logger = get()
    close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if rank == 0:
        logger.addHandler(_Console())
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # else the standard library prints warnings by itself
    return logger


def get() -> logging.Logger:
    """megadistill's logger."""
    return logging.getLogger(_NAME)


def close() -> None:
    """Flush and leave all places that `setup` sent messages to."""
    logger = get()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
