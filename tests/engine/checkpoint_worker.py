"""One rank of the two-process checkpoint test; tells what it saw as one JSON line."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from megadistill.core import dist
from megadistill.core.errors import StaleAttempt
from megadistill.core.together import RankFailed
from megadistill.engine import checkpoint
from megadistill.engine.publisher import Publisher

root = Path(sys.argv[1])
world = dist.from_environment()
dist.connect(world, 30)
publisher = Publisher(sys.argv[2] == "asynchronous", 30)
answer: dict[str, object] = {}
log: list[str] = []


def ours() -> None:
    assert world.is_main, "only rank 0 asks"


def write(folder: Path) -> None:
    (folder / f"rank-{world.rank}.bin").write_bytes(bytes([world.rank]) * 500)


def broken(folder: Path) -> None:
    write(folder)
    if world.rank == 1:
        raise ValueError("no such tensor")


def save(step, write, still_ours=ours):
    keep = checkpoint.Keep(2)
    path = checkpoint.save(root, step, 1, partial(partial, write), {}, still_ours, keep, log.append, None, publisher)
    dist.gather_objects("the training loop's own collectives go on meanwhile")
    publisher.wait()
    return path


path = save(10, write)
answer["saved"] = path.name
answer["files"] = sorted(json.loads((path / "MANIFEST.json").read_text())["files"])

try:
    save(20, broken)
except RankFailed as error:
    answer["failure"] = [type(error).__name__, "rank 1: ValueError: no such tensor" in str(error)]
    answer["cause"] = type(error.__cause__).__name__


def stale() -> None:
    raise StaleAttempt("attempt 2 has claimed the run")


try:
    save(30, write, stale)
except StaleAttempt as error:
    answer["stale"] = type(error).__name__

path = save(40, write)
if world.is_main:
    (path / "rank-1.bin").write_bytes(b"x" * 500)
dist.barrier()
found = checkpoint.newest(root, {}, log.append)
answer["newest"] = found.path.name if found else None
answer["log"] = log
dist.disconnect()
sys.stdout.write(json.dumps(answer) + "\n")
