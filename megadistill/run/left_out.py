"""What of its data a run leaves out, by its journal: windows of draws after a rollback, and rows that were damaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from megadistill.core.dist import gather_objects
from megadistill.core.together import on_main
from megadistill.data.stream import Part, Stream
from megadistill.run.directory import RunDirectory


def skipped(events: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """The windows [start, stop) of draws of all `skip` events, each journaled with `draws=stream.window(...)`."""
    return [(event["draws"][0], event["draws"][1]) for event in events if event["event"] == "skip"]


class LeftOut:
    """Keeps what is left out the same on all ranks and in all attempts. Its methods are called on every rank alike."""

    def __init__(self, directory: RunDirectory, stream: Stream, held_out: Part) -> None:
        self.directory, self.stream, self.parts = directory, stream, (stream.part, held_out)
        self.quarantines = stream.part.config.read.damaged == "quarantine"

    def recall(self) -> None:
        """Leave out what earlier attempts did, before the first batch is made."""
        events = on_main("read the journal", self.directory.events)
        self.stream.skip(skipped(events))
        if self.quarantines:
            for part in self.parts:
                part.lose(event for event in events if event["event"] == "quarantine")
        self._told = self._lost()

    def agree(self, step: int) -> None:
        """What a rank gave up as damaged since, all give up now, and the journal tells it; before a checkpoint, so that
        whoever goes on from that has the same rows.

        Raises:
            UserError: together these are more than may be quarantined.
        """
        if not self.quarantines:
            return
        for lost in gather_objects(self._lost()):
            for part in self.parts:
                part.lose(lost)
        lost, before = self._lost(), self._told
        for rows in lost:
            if rows not in before:
                self.directory.journal("quarantine", step=step, **rows)
        self._told = lost

    def _lost(self) -> list[dict[str, Any]]:
        return [rows for part in self.parts for rows in part.lost()]
