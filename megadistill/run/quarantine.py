"""How rows that were given up as damaged stay given up, on every rank and in every attempt: by the journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megadistill.core.dist import gather_objects
from megadistill.core.together import on_main
from megadistill.data.rows import Rows
from megadistill.data.stream import Part
from megadistill.run.directory import RunDirectory


class Quarantine:
    """For `data.read.damaged: quarantine`; else it does nothing. Its methods are called on every rank alike."""

    def __init__(self, directory: RunDirectory, parts: Sequence[Rows]) -> None:
        self.directory, self.parts = directory, [part for part in parts if isinstance(part, Part)]
        self.on = any(part.config.read.damaged == "quarantine" for part in self.parts)
        self._told: list[dict[str, Any]] = []

    def recall(self) -> None:
        """Give up what earlier attempts did, before the first batch is made.

        Raises:
            UserError: that is more than may be quarantined.
        """
        if not self.on:
            return
        events = on_main("read the journal", self.directory.events)
        self._lose([event for event in events if event["event"] == "quarantine"])
        self._told = self._lost()

    def agree(self, step: int) -> None:
        """What a rank gave up since, all give up, and the journal tells it; before a checkpoint, so that whoever goes
        on from that has the same rows.

        Raises:
            UserError: all ranks together gave up more than may be quarantined.
        """
        if not self.on:
            return
        for lost in gather_objects(self._lost()):
            self._lose(lost)
        now = self._lost()
        for rows in now:
            if rows not in self._told:
                self.directory.journal("quarantine", step=step, **rows)
        self._told = now

    def _lost(self) -> list[dict[str, Any]]:
        return [rows for part in self.parts for rows in part.lost()]

    def _lose(self, lost: Sequence[dict[str, Any]]) -> None:
        for part in self.parts:
            part.lose(lost)
