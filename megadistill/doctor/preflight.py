"""Whether the nodes of a job are fit to train together: every rank looks at its own, all are compared, bad hosts are
named, within a minute and before the run is touched.

`srun bash launch/preflight.sh FILE`; elsewhere, `megadistill doctor FILE --ranks` started as the run's ranks are.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megadistill.core.dist import World, barrier, connect, disconnect, from_environment, gather_objects
from megadistill.core.errors import Exit, UserError
from megadistill.doctor import links, probes
from megadistill.run.config import RunConfig, load
from megadistill.run.presets import resolve

WAIT_SECONDS = 45.0
"""For the last rank, once rank 0 is there: imports from a cold shared disk take a while."""
COLLECTIVE_SECONDS = 60.0
CLOCK_SECONDS = 5.0
LEAST_DISK_GB, LEAST_INODES = 1.0, 1000
MOST_BUSY = 0.1

Facts = Mapping[str, Any]
Log = Callable[[str], object]


@dataclass
class Verdict:
    """What is wrong, by host; under "" what is wrong with the job as a whole."""

    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    facts: Sequence[Facts] = ()
    speed: str = ""

    @property
    def bad_hosts(self) -> list[str]:
        """Those that a scheduler should leave out."""
        return sorted(host for host in self.problems if host)

    def blame(self, host: str, problem: str) -> None:
        if problem not in self.problems[host]:
            self.problems[host].append(problem)


def preflight(
    config: RunConfig, world: World, least_gigabytes: float = 0.0, wait_seconds: float = WAIT_SECONDS
) -> Verdict:
    """The verdict, on every rank alike.

    Args:
        least_gigabytes: what an all-reduce must move a second and rank; 0: any speed will do.
        wait_seconds: how long rank 0 waits for the last rank.
    """
    store = _store(world, wait_seconds)
    missing = meet(world, store, wait_seconds) if store is not None else None
    if missing is not None:
        verdict = Verdict()
        for host, problem in missing.items():
            verdict.blame(host, problem)
        return verdict
    device = connect(world, COLLECTIVE_SECONDS, store)
    try:
        mine = probes.probe(config, world, device)
        barrier()
        mine["clock"] = probes.clock()
        facts = gather_objects(mine)
        verdict = judge(facts)
        if not verdict.problems:
            rate = links.all_reduce_rate(device)
            verdict.speed = f"all-reduce over {world.size} ranks: {rate:.2f} GB/s a rank"
            if rate < least_gigabytes:
                for host, problem in links.slow_hosts([f["host"] for f in facts], device, least_gigabytes).items():
                    verdict.blame(host, problem)
        return verdict
    finally:
        disconnect()


def _store(world: World, wait_seconds: float) -> dist.Store | None:
    if world.size == 1:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own process keeps the store
    limit = timedelta(seconds=2 * wait_seconds)  # rank 0 may itself be the last one
    store = dist.TCPStore(address, port, None, world.is_main and not agents, limit, wait_for_workers=False)
    return dist.PrefixStore("preflight", store)


def meet(world: World, store: dist.Store, wait_seconds: float) -> dict[str, str] | None:
    """Wait until every rank has come; None when all have. What is missing otherwise, by host: a dead node would keep
    the others waiting in the process group's set-up until that times out, without a name."""
    store.set(f"here/{world.rank}", probes.host())
    if not world.is_main:
        told: dict[str, str] | None = json.loads(store.get("missing"))
        store.set(f"told/{world.rank}", "")
        return told
    deadline = time.monotonic() + wait_seconds
    absent = list(range(world.size))
    while absent and time.monotonic() < deadline:
        absent = [rank for rank in absent if not store.check([f"here/{rank}"])]
        time.sleep(0.05)
    missing = None
    if absent:
        came = {store.get(f"here/{rank}").decode() for rank in range(world.size) if rank not in absent}
        hosts = [name for name in _slurm_hosts() if name not in came]
        ranks = ", ".join(map(str, absent))
        missing = dict.fromkeys(hosts or [""], f"rank(s) {ranks} did not come within {wait_seconds:.0f} s")
    store.set("missing", json.dumps(missing))
    # the store lives in this process: not before the others have been told may it go
    untold = [rank for rank in range(1, world.size) if rank not in absent]
    while untold and time.monotonic() < deadline + wait_seconds:
        untold = [rank for rank in untold if not store.check([f"told/{rank}"])]
        time.sleep(0.05)
    return missing


def judge(facts: Sequence[Facts]) -> Verdict:
    """Compare what the ranks have found; where most agree, the others are to blame."""
    verdict = Verdict(facts=facts)
    packages = sorted({name for fact in facts for name in fact["software"]})
    _agree(verdict, facts, "number of GPUs", lambda fact: fact["gpus"])
    for name in packages:
        _agree(verdict, facts, name, lambda fact, name=name: fact["software"].get(name))
    _agree(verdict, facts, "config", lambda fact: fact["config"])
    _agree(verdict, facts, "rows read from the data", lambda fact: fact["rows"])
    _agree(verdict, facts, "device", lambda fact: fact["device"])
    for device in {fact["device"] for fact in facts}:
        same = [fact for fact in facts if fact["device"] == device]
        _agree(verdict, same, "result of a bf16 matrix product", lambda fact: fact["matmul"])
    middle = statistics.median(fact["clock"] for fact in facts)
    for fact in facts:
        host = fact["host"]
        if abs(fact["clock"] - middle) > CLOCK_SECONDS:
            verdict.blame(host, f"its clock is {fact['clock'] - middle:+.0f} s off")
        if fact["busy_memory"] > MOST_BUSY:
            verdict.blame(host, f"rank {fact['rank']}'s GPU has {fact['busy_memory']:.0%} of its memory in use")
        if fact["write_problem"]:
            verdict.blame(host, f"cannot write to {fact['disk']}: {fact['write_problem']}")
    fullest = min(facts, key=lambda fact: fact["disk_free_gb"])
    if fullest["disk_free_gb"] < LEAST_DISK_GB:
        verdict.blame("", f"{fullest['disk']} has {fullest['disk_free_gb']:.2f} GB left")
    inodes = [fact["inodes_free"] for fact in facts if fact["inodes_free"] is not None]
    if inodes and min(inodes) < LEAST_INODES:
        verdict.blame("", f"{fullest['disk']} has {min(inodes)} inodes left")
    if any(str(fact["rows"]).startswith("unreadable") for fact in facts) and len({f["rows"] for f in facts}) == 1:
        verdict.blame("", f"the data is {facts[0]['rows']}")
    return verdict


def _agree(verdict: Verdict, facts: Sequence[Facts], what: str, of: Any) -> None:
    """Blame the hosts whose ranks differ from most; nobody is most where the first two are as many."""
    ranked = Counter(str(of(fact)) for fact in facts).most_common()
    if len(ranked) < 2:
        return
    usual, often = ranked[0]
    if ranked[1][1] == often:
        told = "; ".join(f"{value} on {_hosts(facts, of, value)}" for value, _ in ranked)
        return verdict.blame("", f"{what} differs: {told}")
    for fact in facts:
        if str(of(fact)) != usual:
            verdict.blame(fact["host"], f"{what}: {of(fact)}, elsewhere {usual}")


def _hosts(facts: Sequence[Facts], of: Any, value: str) -> str:
    return ", ".join(sorted({fact["host"] for fact in facts if str(of(fact)) == value}))


def table(verdict: Verdict) -> str:
    """For people: one line a host, then what is wrong."""
    ranks: dict[str, list[Facts]] = defaultdict(list)
    for fact in verdict.facts:
        ranks[fact["host"]].append(fact)
    lines = []
    for host, facts in sorted(ranks.items()):
        first = facts[0]
        numbers = ",".join(str(fact["rank"]) for fact in facts)
        sign = "X" if host in verdict.problems else " "
        lines.append(
            f"{sign} {host:<16} ranks {numbers}  {first['device']}  disk {first['disk_free_gb']:.0f} GB free, "
            f"1 MiB flushed in {max(fact['write_seconds'] for fact in facts):.3f} s"
        )
    for host, problems in sorted(verdict.problems.items()):
        lines += [f"X {host or 'the job'}: {problem}" for problem in problems]
    if verdict.speed:
        lines.append(verdict.speed)
    lines.append(f"leave out: {','.join(verdict.bad_hosts)}" if verdict.bad_hosts else "")
    lines.append(f"{sum(map(len, verdict.problems.values()))} problem(s)" if verdict.problems else "fit to train")
    return "\n".join(line for line in lines if line)


def _slurm_hosts() -> list[str]:
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        return []
    shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    return shown.stdout.split()


def tell(
    file: Path | None, assignments: Sequence[str], least: float, wait: float, bad_hosts: Path | None, say: Log
) -> Exit:
    """The verdict on the job of a config, told by rank 0.

    Args:
        least, wait: see `preflight`.
        bad_hosts: receives the hosts to leave out, if any, with commas between.
        say: receives the table.

    Raises:
        UserError: no config is named, or there is something wrong with it.
    """
    if file is None:
        raise UserError("doctor --ranks looks at a job", "no config was named", "megadistill doctor FILE --ranks")
    world = from_environment()
    verdict = preflight(load(resolve(file), assignments), world, least, wait)
    if world.is_main:
        say(table(verdict))
        if bad_hosts is not None and verdict.bad_hosts:
            bad_hosts.write_text(",".join(verdict.bad_hosts) + "\n", encoding="utf-8")
    return Exit.USER_ERROR if verdict.problems else Exit.DONE
