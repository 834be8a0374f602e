"""When a checkpoint exists, and which one a new attempt may load: the commit protocol and its inverse.

A checkpoint is written into `.tmp-step-00001000-a0007`, hashed, described by its manifest, and renamed into
existence. A kill at any instant leaves the old checkpoints and a temporary folder.

The fence. Each attempt records, before it trains, which checkpoint it resumed from. Followed back from the
newest attempt that did so, these records are one line of history: this attempt, the one it resumed from up
to that step, and so on. Only checkpoints on that line are loaded or kept. What a stale attempt still commits
after its successor has resumed lies beyond the step at which the line left it, so nobody ever loads it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megadistill.core import faults
from megadistill.core.errors import UserError
from megadistill.core.files import fsync_directory, sha256_file, sha256_json, write_json
from megadistill.core.together import RankFailed, on_main, rank_and_size, together
from megadistill.engine.publisher import Publisher

FORMAT = 1
MANIFEST = "MANIFEST.json"
SPACE = 1.2
"""Free disk wanted before a save, in sizes of the newest checkpoint."""
_FREE_SPACE = "free some space, or lower checkpoint.keep; the committed checkpoints are untouched"
_START_OVER = "start over with --fresh (which keeps the old run beside it)"

Origin = tuple[int, int]
"""The (step, attempt) of a checkpoint."""
History = Mapping[int, Origin | None]
"""By attempt: the checkpoint it resumed from, None if it started from nothing. Attempts that died before they
restored anything are not in it."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class Keep:
    """Which checkpoints retention leaves alone."""

    newest: int = 2
    """So many."""
    every_steps: int | None = None
    """Multiples of it, too."""
    best: bool = False
    """And the one with the lowest held-out loss, of those whose manifest states one."""


@dataclass(frozen=True)
class Found:
    """A checkpoint whose every byte is as it was written."""

    path: Path
    step: int
    attempt: int
    manifest: dict[str, Any]


# ---------------------------------------------------------------------------------- saving


def save(
    root: Path,
    step: int,
    attempt: int,
    snapshot: Callable[[Path], Callable[[], None]],
    facts: dict[str, Any],
    still_ours: Callable[[], None],
    keep: Keep,
    log: Log,
    history: History | None = None,
    publisher: Publisher | None = None,
    committed: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Commit one checkpoint. Called on every rank; returns, or raises, on every rank alike.

    Args:
        root: the folder of checkpoints.
        snapshot: copies this rank's state as it is now, and returns what writes that copy into the folder it was
            given. It may use collectives, but a rank that raises while the others wait in one leaves them there
            until the process group's timeout.
        facts: JSON values for the manifest.
        still_ours: raises StaleAttempt when a newer attempt has claimed the run; called on rank 0.
        keep: which older ones stay.
        history: what `directory.history()` tells; retention counts only checkpoints on its line.
        publisher: does everything after the snapshot, at once or beside the training loop; None: at once. What goes
            wrong there rises from its `wait`.
        committed: told of the checkpoint once it exists; on every rank.

    Raises:
        StaleAttempt: a newer attempt has started; nothing was committed, or nothing deleted.
        UserError: the disk is too full; nothing was committed.
        RankFailed: writing failed on some rank; nothing was committed.
    """
    final = root / _name(step, attempt)
    temporary = root / f".tmp-{final.name}"
    if not on_main(f"begin {final.name}", partial(_begin, final, temporary, still_ours)):
        return final
    faults.place("checkpoint.begun", rank_and_size()[0])
    write = snapshot(temporary)

    def publish() -> None:
        _publish(temporary, final, write, {"step": step, "attempt": attempt, "facts": facts}, still_ours)
        committed(final)
        retain = partial(_retain, root, keep, history or {}, still_ours, log)
        on_main("remove old checkpoints", retain)

    if publisher is None:
        publish()
    else:
        publisher.start(publish)
    return final


def _publish(
    temporary: Path, final: Path, write: Callable[[], None], known: dict[str, Any], still_ours: Callable[[], None]
) -> None:
    """Write, hash, describe, rename."""
    rank, size = rank_and_size()
    try:
        together(f"write {final.name}", partial(_write, write, final.name))
        faults.place("checkpoint.written", rank)
        names = on_main(f"list {final.name}", partial(_files, temporary))
        seals = together(f"hash {final.name}", lambda: {n: _seal(temporary / n) for n in names[rank::size]})
        faults.place("checkpoint.hashed", rank)
        manifest = {
            "format": FORMAT,
            **known,
            "world_size": size,
            "files": dict(sorted((name, seal) for part in seals for name, seal in part.items())),
            "complete": True,
        }
        on_main(f"commit {final.name}", partial(_commit, temporary, final, manifest, still_ours))
    except (UserError, RankFailed):
        on_main(f"clear away {temporary.name}", partial(_abandon, temporary, still_ours))
        raise


def sweep(root: Path, attempt: int | None = None) -> None:
    """Delete what kills left half written or half deleted; only for the owner of the newest claim, at start.

    Args:
        attempt: leave alone what this attempt or a newer one is writing.
    """
    for pattern in (".tmp-*", ".trash-*"):
        for folder in root.glob(pattern):
            parsed = _parse(folder.name.removeprefix(".tmp-").removeprefix(".trash-"))
            if attempt is None or parsed is None or parsed[1] < attempt:
                shutil.rmtree(folder, ignore_errors=True)


def _begin(final: Path, temporary: Path, still_ours: Callable[[], None]) -> bool:
    still_ours()
    if final.exists():
        return False  # this attempt has already committed this step: the state is the same
    root = final.parent
    root.mkdir(parents=True, exist_ok=True)
    newest_size = next((sum((p / n).stat().st_size for n in _files(p)) for _, _, p in committed(root)), 0)
    needed, free = int(SPACE * newest_size), shutil.disk_usage(root).free
    if free < needed:
        raise UserError(
            f"not enough disk space for checkpoint {final.name}",
            f"{root}: {free / 1e9:.3f} GB free, {needed / 1e9:.3f} GB needed ({SPACE} x the newest one)",
            _FREE_SPACE,
        )
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return True


def _write(write: Callable[[], None], name: str) -> None:
    try:
        write()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"the disk filled up while checkpoint {name} was being written"
            raise UserError(what, str(error), _FREE_SPACE) from error
        raise


def _seal(path: Path) -> dict[str, Any]:
    """Flush a file to disk and describe it."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _commit(temporary: Path, final: Path, manifest: dict[str, Any], still_ours: Callable[[], None]) -> None:
    manifest = json.loads(json.dumps(manifest))  # as it will be read back, for the manifest's own hash
    write_json(temporary / MANIFEST, {**manifest, "sha256": sha256_json(manifest)})
    for folder in [path for path in temporary.rglob("*") if path.is_dir()]:
        fsync_directory(folder)
    faults.place("checkpoint.described", 0)
    still_ours()  # a newer attempt may claim right after this: then the fence holds
    os.rename(temporary, final)
    faults.place("checkpoint.renamed", 0)
    fsync_directory(final.parent)


def _abandon(temporary: Path, still_ours: Callable[[], None]) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    still_ours()  # a newer attempt sweeping our folder away is why writing failed: say that instead


def _retain(root: Path, keep: Keep, history: History, still_ours: Callable[[], None], log: Log) -> None:
    still_ours()  # a newer attempt may be reading what would be deleted
    ours = [(step, path) for step, attempt, path in committed(root) if on_line(history, step, attempt)]
    stay = {path for _, path in ours[: keep.newest]}
    stay |= {path for step, path in ours if keep.every_steps and step % keep.every_steps == 0}
    if keep.best:
        losses = {path: _read_manifest(path)[0].get("facts", {}).get("heldout_loss") for _, path in ours}
        measured = {path: loss for path, loss in losses.items() if loss is not None}
        stay |= set(sorted(measured, key=measured.__getitem__)[:1])
    for _, _, victim in committed(root):
        if victim in stay:
            continue
        trash = root / f".trash-{victim.name}"
        try:
            os.rename(victim, trash)  # no longer a checkpoint, even if a kill leaves it half deleted
            faults.place("checkpoint.trashed", 0)
            shutil.rmtree(trash)
        except OSError as error:  # the new checkpoint is safe; the next sweep tries again
            log(f"could not delete old checkpoint {victim.name}: {error}")


# ---------------------------------------------------------------------------------- finding


def newest(root: Path, history: History, log: Log, before: float = math.inf) -> Found | None:
    """The newest checkpoint on the line of history that verifies; None when the line has none. On every rank.

    Args:
        before: only checkpoints of earlier steps count.

    Each rank hashes its share of the files. A damaged checkpoint is named through `log` and the one before it
    tried; of two of the same step the later attempt's is taken.

    Raises:
        UserError: there are checkpoints and none verifies, or all are undone although the run does not go back to its
            beginning; it never starts from zero silently.
    """
    rank, size = rank_and_size()
    problems: list[str] = []
    undone: list[str] = []
    for step, attempt, path in on_main("list the checkpoints", partial(committed, root)):
        if not on_line(history, step, attempt):
            log(f"checkpoint {path.name} is ignored: a later attempt had already resumed from an earlier step")
            continue
        if step >= before:
            log(f"checkpoint {path.name} is undone: the run goes back to before step {before:.0f}")
            undone.append(path.name)
            continue
        manifest, wrong = on_main(f"read {path / MANIFEST}", partial(_read_manifest, path))
        if not wrong:
            names = list(manifest["files"])[rank::size]
            shares = together(f"verify {path.name}", partial(_damage, path, manifest, names))
            wrong = [problem for share in shares for problem in share]
        if not wrong:
            return Found(path, step, attempt, manifest)
        problems += [f"{path.name}: {problem}" for problem in wrong]
        for problem in wrong:
            log(f"checkpoint {path.name} is damaged and will not be used: {problem}")
    if problems:
        raise UserError(
            f"no checkpoint in {root} verifies",
            "\n  ".join(problems),
            f"bring back a good copy of one, or {_START_OVER}",
        )
    if undone and before > 1:
        raise UserError(
            f"no checkpoint in {root} is of a step before {before:.0f}, which the run goes back to",
            f"there are {', '.join(undone)}",
            f"bring back a copy of an earlier one, or {_START_OVER}",
        )
    return None


def verify(root: Path) -> list[str]:
    """Everything that is wrong with the checkpoints in `root`, one line each; for one process."""
    problems = []
    for _, _, path in committed(root):
        problems += [f"{path.name}: {problem}" for problem in damage(path)]
    return problems


def damage(path: Path) -> list[str]:
    """Everything that is wrong with one checkpoint, one line each; for one process."""
    manifest, wrong = _read_manifest(path)
    return wrong or _damage(path, manifest, manifest["files"])


def committed(root: Path) -> list[tuple[int, int, Path]]:
    """(step, attempt, path) of all checkpoints in `root`, newest first, verified or not."""
    found = []
    for path in root.glob("step-*"):
        parsed = _parse(path.name)
        if parsed is not None and path.is_dir():
            found.append((*parsed, path))
    return sorted(found, reverse=True)


def on_line(history: History, step: int, attempt: int) -> bool:
    """Whether a checkpoint lies on the line of history (see the top of this file)."""
    follow: int | None = max(history, default=0)
    if attempt > (follow or 0):
        return True
    limit: float = float("inf")
    while follow is not None and follow > attempt:
        origin = history.get(follow)
        limit, follow = origin if origin is not None and origin[1] < follow else (0, None)
    return follow == attempt and step <= limit


def _read_manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The manifest of a checkpoint, and what is wrong with it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        claimed = manifest.pop("sha256")
    except FileNotFoundError:
        return {}, [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return {}, [f"{MANIFEST} cannot be read: {error}"]
    if claimed != sha256_json(manifest):
        return {}, [f"{MANIFEST} does not have the sha256 that it states"]
    if manifest["format"] != FORMAT:
        return {}, [f"{MANIFEST} has format {manifest['format']}; this version reads {FORMAT}"]
    if (manifest["step"], manifest["attempt"]) != _parse(path.name):
        return {}, [f"{MANIFEST} is that of {_name(manifest['step'], manifest['attempt'])}"]
    return manifest, []


def _damage(path: Path, manifest: dict[str, Any], names: Iterable[str]) -> list[str]:
    """What is wrong with the named files."""
    problems = []
    for name in names:
        wanted = manifest["files"][name]
        try:
            size = (path / name).stat().st_size
            if size != wanted["bytes"]:
                problems.append(f"{name} has {size} bytes, the manifest says {wanted['bytes']}")
            elif sha256_file(path / name) != wanted["sha256"]:
                problems.append(f"{name} does not have the sha256 that the manifest says")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error}")
    return problems


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _name(step: int, attempt: int) -> str:
    return f"step-{step:08d}-a{attempt:04d}"


def _parse(name: str) -> Origin | None:
    match = re.fullmatch(r"step-(\d{8,})-a(\d{4,})", name)
    return (int(match[1]), int(match[2])) if match else None
