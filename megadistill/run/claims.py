"""Which attempt owns a run, and which checkpoint each attempt resumed from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megadistill.core.files import write_json

if TYPE_CHECKING:
    from megadistill.engine.checkpoint import Origin


class Claims:
    """The files `attempts/000007.json`. Only one process can create each; the highest number owns the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, facts: dict[str, Any]) -> int:
        """Create the next claim; returns its number."""
        self.folder.mkdir(exist_ok=True)
        attempt = self.newest() + 1
        while True:
            try:
                os.close(os.open(self._file(attempt), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                break
            except FileExistsError:
                attempt += 1
        write_json(self._file(attempt), {"attempt": attempt, **facts})
        return attempt

    def newest(self) -> int:
        """The owner's number; 0 when there is none."""
        return max(self._numbers(), default=0)

    def read(self, attempt: int) -> dict[str, Any]:
        """What a claim says; nothing if its owner was killed while making it (and so did nothing else)."""
        try:
            return json.loads(self._file(attempt).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def resumed(self, attempt: int, origin: Origin | None) -> None:
        """Add to a claim what its attempt resumed from: (step, attempt), or None for a start from nothing."""
        write_json(self._file(attempt), {**self.read(attempt), "resumed_from": origin})

    def history(self) -> dict[int, Origin | None]:
        """What every attempt resumed from; attempts that never got so far are left out."""
        claims = {attempt: self.read(attempt) for attempt in sorted(self._numbers())}
        origins = {attempt: c["resumed_from"] for attempt, c in claims.items() if "resumed_from" in c}
        return {attempt: None if o is None else (o[0], o[1]) for attempt, o in origins.items()}

    def _numbers(self) -> list[int]:
        return [int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit()]

    def _file(self, attempt: int) -> Path:
        return self.folder / f"{attempt:06d}.json"
