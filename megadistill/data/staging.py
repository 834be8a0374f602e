"""How shards that lie far away come near: copied to local disk when wanted, checked, dropped when there are many."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict
from megadistill.data.index import Damage

CHUNK = 1 << 20

TICK = 1_000_000_000
"""Nanoseconds that times of a folder may be apart without being different."""


class Staging(Strict):
    """Local copies of shards, for a data.dir on a shared file system or in an object store."""

    dir: Path
    """A folder on a local disk. The processes of a node share it, and so may several runs."""
    max_gigabytes: float = Field(gt=0)
    """Shards of a corpus that were used longest ago are removed before those there would take more (beside them, every
    process may have one on its way). A corpus that is larger needs `data.order: block`."""
    source: str | None = None
    """Where the shards lie: an fsspec url of a copy of data.dir, such as s3://bucket/prepared. None: in data.dir
    itself."""
    ahead: int = Field(8, ge=1)
    """How many steps early shards are fetched."""

    @property
    def max_bytes(self) -> int:
        return int(self.max_gigabytes * 1e9)


class Stage:
    """The local copies of one folder's shards.

    Args:
        config: where they are kept, and how many.
        far: the folder or url that has them.
        name: of the folder below `config.dir`; by content, so that other shards are never taken for these.
    """

    def __init__(self, config: Staging, far: str, name: str) -> None:
        self.config, self.far = config, far.rstrip("/")
        self.folder = config.dir / name
        self._looked = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the staging folder {config.dir} cannot be made", str(error), _OTHER) from None

    def fetch(self, name: str, size: int, sha256: bytes) -> None:
        """Copy a shard to `folder` and check it, unless it is there. Others that want it wait meanwhile.

        Raises:
            Damage: it is missing there, or differs from the index.
            UserError: it cannot be copied: no room, no network.
        """
        local = self.folder / name
        with self._locked(name):
            if local.exists() and local.stat().st_size == size:
                os.utime(local)  # used now
            else:
                self._make_room(size)
                self._copy(name, local, size, sha256)

    def used(self, name: str) -> None:
        """A copy that is there is not to be among those that were used longest ago."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / name)

    def changed(self) -> bool:
        """Whether copies may have come or gone since this was last asked."""
        try:
            now, before = self.folder.stat().st_mtime_ns, self._looked
        except FileNotFoundError:  # what is mapped can still be read, and could not be fetched again
            return False
        self._looked = now if time.time_ns() - now > TICK else 0  # another change may yet have the same time
        return now != before

    def staged_bytes(self) -> int:
        return sum(size for _, _, size in self._staged())

    def _copy(self, name: str, local: Path, size: int, sha256: bytes) -> None:
        temporary = local.with_name(f".{name}.tmp")
        digest = hashlib.sha256()
        try:
            with _open(f"{self.far}/{name}") as far, open(temporary, "wb") as near:
                while chunk := far.read(CHUNK):
                    digest.update(chunk)
                    near.write(chunk)
                near.flush()
                os.fsync(near.fileno())
            if temporary.stat().st_size != size or digest.digest() != sha256:
                raise Damage(
                    f"shard {self.far}/{name} is damaged",
                    f"{temporary.stat().st_size:,} bytes came; bytes or sha256 differ from the index",
                    "copy it again from where it was prepared, or run `megadistill prepare FILE` there",
                )
            os.replace(temporary, local)
        except FileNotFoundError as error:
            raise Damage(f"shard {self.far}/{name} is missing", str(error), "copy the whole folder there") from None
        except OSError as error:
            free = shutil.disk_usage(self.folder).free / 1e9
            why = f"{error}; {free:,.1f} GB are free in {self.folder}"
            raise UserError(f"cannot stage shard {name}", why, _OTHER) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago. Who maps a removed file can read it, and keeps its room taken, until he
        lets it go."""
        staged = sorted(self._staged())
        total = size + sum(bytes_ for _, _, bytes_ in staged)
        for _, path, bytes_ in staged:
            if total <= self.config.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= bytes_

    def _staged(self) -> list[tuple[float, Path, int]]:
        """(last use, path, bytes) of every copy."""
        found = []
        for path in self.folder.glob("[!.]*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process is removing too
                found.append((path.stat().st_mtime, path, path.stat().st_size))
        return found

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.folder / f".{name}.lock", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def fetch_small(far: str, local: Path) -> None:
    """Copy an index or a count from far, if it is not there yet; what far does not have is left to who needs it."""
    if local.exists():
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    temporary = local.with_name(f".{local.name}.{os.getpid()}.tmp")
    try:
        with _open(far) as source, open(temporary, "wb") as near:
            shutil.copyfileobj(source, near, CHUNK)
        os.replace(temporary, local)
    except FileNotFoundError:
        return
    except (OSError, ImportError, ValueError) as error:
        raise UserError(
            f"cannot fetch {far}", str(error), "check data.read.staging.source, login and network"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _open(name: str) -> IO[bytes]:
    if "://" not in name:
        return open(name, "rb")
    import fsspec  # type: ignore[import-untyped]

    handle: IO[bytes] = fsspec.open(name, "rb").open()
    return handle


_OTHER = "set data.read.staging: dir to a local disk with room, or a smaller max_gigabytes"
