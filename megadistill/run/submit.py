"""How a run goes to Slurm: a cluster's profile, and the one sbatch command that it comes to."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict, explain, read_yaml
from megadistill.run.config import RunConfig

SCRIPT = Path("slurm/train.sbatch")
PROFILES = Path("slurm/clusters")


class Cluster(Strict):
    """What a cluster's nodes have, and what its Slurm wants to hear."""

    tasks_per_node: int = Field(gt=0)
    """Ranks on each node: one a GPU."""
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_task: int | None = Field(None, gt=0)
    time: str | None = None
    """Time limit of one job; the run goes on in the next."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: list[str] = Field(default_factory=list)
    """Nodes that are not to be used."""
    sbatch: list[str] = Field(default_factory=list)
    """Further options of sbatch."""
    srun: list[str] = Field(default_factory=list)
    """Further options of the srun that starts the ranks, such as a container's image."""
    setup: str = ""
    """A line of shell that each job runs before the ranks start."""

    def options(self, nodes: int) -> list[str]:
        """What sbatch is told, whatever the run."""
        given: dict[str, object] = {
            "nodes": nodes,
            "ntasks-per-node": self.tasks_per_node,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "exclude": ",".join(self.exclude) or None,
        }
        return [f"--{name}={value}" for name, value in given.items() if value is not None] + self.sbatch


def read_cluster(spec: str) -> Cluster:
    """A profile by its file, or by its name under slurm/clusters.

    Raises:
        UserError: no such profile, or not what a profile holds.
    """
    path = Path(spec) if spec.endswith((".yaml", ".yml")) else PROFILES / f"{spec}.yaml"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml"))) or "none"
        raise UserError(f"no cluster profile {path}", f"{PROFILES} holds: {there}", f"copy {PROFILES}/example.yaml")
    try:
        return Cluster.model_validate(read_yaml(path))
    except ValidationError as error:
        raise explain(error, Cluster, str(path)) from None


def command(
    cluster: Cluster, nodes: int, config: RunConfig, file: Path, assignments: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The sbatch command of a run, and the variables it is given besides the present ones.

    Raises:
        UserError: the batch does not divide by the ranks; told now, not when the job has come through the queue.
    """
    config.batch.accumulation(config.students(nodes * cluster.tasks_per_node))
    logs = config.directory / "slurm"
    options = [f"--job-name={config.name}", f"--output={logs / config.name}-%j.out", *cluster.options(nodes)]
    variables = {"MEGADISTILL_SETUP": cluster.setup, "MEGADISTILL_SRUN": shlex.join(cluster.srun)}
    given = {name: value for name, value in variables.items() if value}
    return ["sbatch", *options, str(SCRIPT), str(file), *assignments], given


def submit(arguments: list[str], variables: dict[str, str], logs: Path, environ: dict[str, str]) -> str:
    """Run what `command` returned; returns what sbatch says.

    Raises:
        UserError: this is not the root of a checkout, there is no sbatch here, or Slurm refuses.
    """
    if not SCRIPT.exists():
        raise UserError(f"no {SCRIPT} in {Path.cwd()}", "jobs start from a checkout", "submit from its root")
    if shutil.which("sbatch") is None:
        raise UserError("no sbatch on this machine", "", "submit from a login node, or see the command with --dry-run")
    logs.mkdir(parents=True, exist_ok=True)  # Slurm ends a job at once whose output file it cannot open
    done = subprocess.run(arguments, env={**environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError("Slurm refuses the job", done.stderr.strip(), "mend the cluster's profile (--cluster)")
    return done.stdout.strip()


def shown(arguments: Sequence[str], variables: dict[str, str]) -> str:
    """The command as it can be pasted into a shell."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), shlex.join(arguments)])
