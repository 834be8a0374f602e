"""Where else a run's checkpoints go: copied to remote storage while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megadistill.engine.checkpoint import MANIFEST
from megadistill.run.directory import RunDirectory


class Mirror:
    """Copies one checkpoint at a time; of those that wait, only the newest. What goes wrong is told, and training goes
    on. A copy is whole when its manifest is there, which comes last; an unfinished one is made again."""

    def __init__(self, url: str, directory: RunDirectory, failed: Callable[[str], None]) -> None:
        """
        Args:
            url: of the folder that gets a copy of the run directory, as fsspec understands it.
            failed: told, from another thread, what went wrong.
        """
        self.url, self.directory, self.failed = url, directory, failed
        self._waiting: Path | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def offer(self, checkpoint: Path) -> None:
        """Copy a committed checkpoint soon, unless it is there."""
        with self._changed:
            self._waiting = checkpoint
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Until all is copied, or has failed; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                checkpoint, self._waiting = self._waiting, None
                if checkpoint is None:
                    self._thread = None
                    self._changed.notify_all()
                    return
            try:
                self._copy(checkpoint)
            except Exception as error:
                self.failed(f"{checkpoint.name} was not copied to {self.url}: {type(error).__name__}: {error}")

    def _copy(self, checkpoint: Path) -> None:
        import fsspec  # type: ignore[import-untyped]

        storage, root = fsspec.core.url_to_fs(self.url)
        there = f"{root}/checkpoints/{checkpoint.name}"
        if storage.exists(f"{there}/{MANIFEST}"):
            return
        run = self.directory
        for file in sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST):
            _put(storage, file, f"{there}/{file.relative_to(checkpoint).as_posix()}")
        documents = [run.identity, run.config, run.resolved_config, run.environment, run.command, run.deepspeed]
        for file in [*documents, run.journal_file, run.metrics, *sorted(run.attempts.iterdir())]:
            if file.exists():
                _put(storage, file, f"{root}/{file.relative_to(run.path).as_posix()}")
        _put(storage, checkpoint / MANIFEST, f"{there}/{MANIFEST}")


def _put(storage: Any, file: Path, there: str) -> None:
    storage.makedirs(there.rpartition("/")[0], exist_ok=True)
    storage.put_file(str(file), there)
