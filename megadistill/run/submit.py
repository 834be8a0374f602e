"""How runs go to Slurm: a cluster's profile, and the one sbatch command that they come to."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write, sha256_json
from megadistill.core.schema import Strict, explain, read_yaml
from megadistill.run.config import RunConfig, load

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
        fix = f"copy {PROFILES}/example.yaml" if PROFILES.is_dir() else f"go to a checkout's root, which has {PROFILES}"
        raise UserError(f"no cluster profile {path}", f"{PROFILES} holds: {there}", fix)
    try:
        return Cluster.model_validate(read_yaml(path))
    except ValidationError as error:
        raise explain(error, Cluster, str(path)) from None


@dataclass(frozen=True)
class Job:
    """What goes to Slurm: one run, or an array of them."""

    arguments: list[str]
    """The sbatch command."""
    variables: dict[str, str]
    """Those it is given besides the present ones; in its own environment, where commas and tabs stay what they are."""
    logs: Path
    sweep: Path | None
    """Where the array's tasks read their overrides, a line each, tabs between; its name is that of its content, since
    they read it whenever they start, and again when they are requeued."""
    members: list[list[str]]

    def __str__(self) -> str:
        """The command as it can be pasted into a shell, behind what it needs."""
        given = (f"{name}={_quoted(value)}" for name, value in self.variables.items())
        lines = [f"# {self.sweep}, a line each: {shlex.join(member)}" for member in self.members]
        return "\n".join([*lines, " ".join([*given, shlex.join(self.arguments)])])


def job(
    cluster: Cluster,
    nodes: int,
    config: RunConfig,
    file: Path,
    assignments: Sequence[str],
    members: Sequence[Sequence[str]] = (),
) -> Job:
    """The job of a run, or of all `members` of a sweep, whose overrides come behind `assignments`.

    Raises:
        UserError: a batch does not divide by the ranks, or a member is no valid config; told now, not when the job has
            come through the queue.
    """
    for member in members or [()]:
        one = load(file, [*assignments, *member]) if member else config
        one.batch.check(one.students(nodes * cluster.tasks_per_node))
    logs, lines = config.directory / "slurm", [list(member) for member in members]
    sweep = (logs / f"{config.name}-{sha256_json(lines)[:12]}.sweep").resolve() if members else None
    number = "%A_%a" if members else "%j"
    options = [f"--job-name={config.name}", f"--output={logs / config.name}-{number}.out", *cluster.options(nodes)]
    options += [f"--array=0-{len(members) - 1}"] if members else []
    variables = {
        "MEGADISTILL_SETUP": cluster.setup,
        "MEGADISTILL_SRUN": "\t".join(cluster.srun),
        "MEGADISTILL_SWEEP": str(sweep or ""),
    }
    given = {name: value for name, value in variables.items() if value}
    arguments = ["sbatch", *options, str(SCRIPT), str(file), *assignments]
    return Job(arguments, given, logs, sweep, lines)


def submit(job: Job, environ: dict[str, str]) -> str:
    """Hand it to Slurm; returns what sbatch says.

    Raises:
        UserError: this is not the root of a checkout, there is no sbatch here, or Slurm refuses.
    """
    if not SCRIPT.exists():
        raise UserError(f"no {SCRIPT} in {Path.cwd()}", "jobs start from a checkout", "submit from its root")
    if shutil.which("sbatch") is None:
        raise UserError("no sbatch on this machine", "", "submit from a login node, or see the command with --dry-run")
    job.logs.mkdir(parents=True, exist_ok=True)  # Slurm ends a job at once whose output file it cannot open
    if job.sweep is not None:
        with atomic_write(job.sweep) as handle:
            handle.writelines("\t".join(member) + "\n" for member in job.members)
    done = subprocess.run(job.arguments, env={**environ, **job.variables}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError("Slurm refuses the job", done.stderr.strip(), "mend the cluster's profile (--cluster)")
    return done.stdout.strip()


def _quoted(text: str) -> str:
    """For bash and zsh; tabs as escapes, since a terminal takes those that are pasted for a wish to complete."""
    if "\t" not in text:
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'").replace("\t", r"\t")
    return f"$'{escaped}'"
