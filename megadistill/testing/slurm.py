"""A real Slurm on this machine: a controller and a few node daemons, without systemd, munge or accounting."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from megadistill.testing.processes import free_port

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "scancel", "scontrol", "squeue", "sinfo")
_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # Debian puts daemons where PATH may not

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=20
SlurmdTimeout=30
RequeueExit=85
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
{nodes}
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 GraceTime=30 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 State=UP
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_SEARCH) is None]
    return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm)" if absent else ""


class Cluster:
    """`with Cluster(folder) as slurm:` starts the daemons and stops them, and every job, at the end.

    Attributes:
        environ: what programs need to talk to it.
        nodes: names of its nodes, all on this machine.
    """

    def __init__(self, folder: Path, num_nodes: int = 2, cpus: int = 2) -> None:
        """
        Args:
            folder: existing; keeps config, state and logs.
            cpus: per node, as declared; more than this machine has are no problem.
        """
        self.folder, self.nodes = folder, [f"node{number}" for number in range(num_nodes)]
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _SEARCH}
        for name in [name for name in self.environ if re.match(r"(SLURM|SRUN|SBATCH)_(?!CONF)|OMP_NUM_THREADS", name)]:
            del self.environ[name]
        host = socket.gethostname()
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={cpus} State=UNKNOWN"
            for name in self.nodes
        ]
        text = CONFIG.format(host=host, port=free_port(), user=getpass.getuser(), folder=folder, nodes="\n".join(lines))
        (folder / "slurm.conf").write_text(text, encoding="utf-8")
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(exist_ok=True)
        self._start("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        try:
            self.wait(lambda: self.command("sinfo", "-hN", "-o", "%t").split().count("idle") >= len(self.nodes), 30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        cancel = ["scancel", "--user", getpass.getuser()]
        subprocess.run(cancel, env=self.environ, capture_output=True, timeout=20, check=False)
        for name in list(self._daemons):
            self._stop(name, signal.SIGTERM)

    def start_node(self, node: str) -> None:
        self._start(node, "-D", "-N", node, program="slurmd")

    def kill_node(self, node: str) -> None:
        """As a power cut would: its jobs' processes live on, and Slurm does not know."""
        self._stop(node, signal.SIGKILL)

    def command(self, *arguments: str, timeout: float = 300, check: bool = True) -> str:
        """Run one of Slurm's programs; returns what it printed, standard error too."""
        done = subprocess.run(
            arguments, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
        assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}\n{self.log()}"
        return done.stdout

    def submit(self, script: Path, *arguments: str, options: Sequence[str] = ()) -> str:
        """sbatch; returns the job's id."""
        return self.command("sbatch", "--parsable", *options, str(script), *arguments).strip().split(";")[0]

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        shown = self.command("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait_for(self, job: str, *states: str, timeout: float = 240) -> dict[str, str]:
        """Wait until the job is in one of `states`; returns what is known of it then."""
        self.wait(lambda: self.job(job)["JobState"] in states, timeout)
        return self.job(job)

    def hurry(self, job: str) -> None:
        """Start a requeued job now, and return when it has started: Slurm holds it for two minutes."""
        self.wait(lambda: self.job(job)["JobState"] == "PENDING", 90)
        time.sleep(2)  # until the controller has set the time that this overrides
        self.command("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)  # it may have started by now
        self.wait(lambda: self.job(job)["JobState"] != "PENDING", 150)

    def cancel(self, job: str) -> None:
        """Until it is over: one that is just going back into the queue is not cancelled by a single word."""

        def over() -> bool:
            self.command("scancel", job, check=False)
            return self.job(job)["JobState"] in ("CANCELLED", "COMPLETED", "FAILED")

        self.wait(over, 120)

    def wait(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until `condition` holds; an AssertionError shows the controller's log when it does not in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout} s in vain\n{self.log()}"
            time.sleep(0.5)

    def log(self) -> str:
        """The queue and the end of the controller's log."""
        queue = subprocess.run(["squeue"], env=self.environ, capture_output=True, text=True, check=False).stdout
        file = self.folder / "slurmctld.log"
        return queue + (file.read_text(errors="replace")[-3000:] if file.exists() else "")

    def _start(self, name: str, *arguments: str, program: str | None = None) -> None:
        path = shutil.which(program or name, path=_SEARCH)
        assert path is not None, missing()
        with open(self.folder / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                [path, *arguments, "-f", str(self.folder / "slurm.conf")],
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _stop(self, name: str, number: signal.Signals) -> None:
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
