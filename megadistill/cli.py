"""What can be asked of megadistill on the command line: one short function a verb, heavy imports inside."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from megadistill.core.errors import Exit, UserError, refuse

app = typer.Typer(
    help="Distil transformers while pretraining them, from a laptop check to a Slurm cluster.",
    no_args_is_help=True,
    add_completion=True,  # `megadistill --install-completion`
    rich_markup_mode=None,  # importing rich for the help costs more than all the rest
    pretty_exceptions_enable=False,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A config, or the bare name of a preset.")]
Assignments = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as in train.steps=1000.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as in runs/quickstart.")]


def main() -> None:
    """Run the command line; what the user can mend is said in a few lines, without a traceback."""
    try:
        app()
    except UserError as error:
        rank = _rank()
        if rank > 0:
            time.sleep(_SPOKESMAN_SECONDS)
        typer.echo(f"error: {error}" if rank == 0 else f"error on rank {rank}: {error}", err=True)
        sys.exit(int(error.exit_code))


_SPOKESMAN_SECONDS = 5.0
"""What one rank finds, usually all find, and rank 0 says it: the others give it time to, since launchers kill all
ranks when the first one leaves. A rank that is still there afterwards had found something of its own."""


@app.command()
def presets() -> None:
    """List the presets, one line each."""
    from megadistill.run import presets as catalogue

    found = catalogue.presets()
    width = max((len(preset.name) for preset in found), default=0)
    for preset in found:
        typer.echo(f"{preset.name:<{width}}  {preset.purpose}")


@app.command()
def init(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A name that `presets` lists.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
) -> None:
    """Copy a preset to a file of your own, to change it."""
    from megadistill.run import presets as catalogue

    schema = catalogue.copy(preset, file)
    typer.echo(f"wrote {file}, and {schema}, by which editors complete and check it")
    _next("validate", file)


@app.command()
def validate(
    file: File,
    assignments: Assignments = None,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved config with each value's origin.")] = False,
) -> None:
    """Say everything that is wrong with a config, at once; models and tokenizers that are here are compared too."""
    from megadistill.run.config import dump, load
    from megadistill.run.fitting import misfits
    from megadistill.run.presets import resolve
    from megadistill.run.show import annotated

    origins: dict[str, str] = {}
    config = load(resolve(file), assignments or [], origins)
    problems, remarks = misfits(config)
    for remark in remarks:
        typer.echo(f"note: {remark}", err=True)
    refuse(problems, str(file))
    if show:
        typer.echo(annotated(dump(config), origins), nl=False)
    else:
        typer.echo(f"{file}: valid")
        _next("prepare" if config.task is None else "train", file, assignments)


@app.command()
def plan(
    file: File,
    assignments: Assignments = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="a100, a100-40gb, h100, h200 or b200.")] = "h100",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Of each, as in 80GB; by default the GPU's.")] = "",
    peak: Annotated[float, typer.Option(min=0, metavar="TFLOPS", help="Of each; by default the GPU's.")] = 0.0,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Share of it that a step reaches.")] = 0.4,
    tokens_per_second: Annotated[float, typer.Option(min=0, help="Measured, of all GPUs, instead of --mfu.")] = 0.0,
    failures: Annotated[float, typer.Option(min=1, metavar="HOURS", help="GPU-hours a failure.")] = 50_000,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers, in bytes and seconds.")] = False,
) -> None:
    """Say whether a run fits, what it takes, and what would make it fit. Needs no GPU and loads no weights."""
    from megadistill.plan import machine as machines
    from megadistill.plan.estimate import plan as make
    from megadistill.plan.page import page, values
    from megadistill.run.config import load
    from megadistill.run.presets import resolve

    config = load(resolve(file), assignments or [])
    card = machines.gpu(gpu)
    where = machines.Machine(
        gpus,
        machines.size(memory) if memory else card.memory,
        peak * 1e12 or (card.fp32 if config.engine.precision == "fp32" else card.bf16),
        mfu,
        tokens_per_second or None,
        hours_between_failures=failures,
    )
    made = make(config, where)
    typer.echo(json.dumps(values(made), indent=2) if as_json else page(made, config))
    raise typer.Exit(int(Exit.DONE if made.fits else Exit.USER_ERROR))


@app.command()
def schema(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A config whose `plugins` are to be in it.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="A reference for people instead.")] = False,
) -> None:
    """Print the JSON schema of a config."""
    from megadistill.core.schema import read_yaml
    from megadistill.run import reference
    from megadistill.run.config import import_plugins
    from megadistill.run.presets import resolve

    if file is not None:
        import_plugins(read_yaml(resolve(file)).get("plugins"))
    if markdown:
        typer.echo(reference.markdown(), nl=False)
    else:
        typer.echo(json.dumps(reference.json_schema(), indent=2))


@app.command()
def prepare(
    file: File,
    assignments: Assignments = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core unless given.")] = None,
    share: Annotated[
        str,
        typer.Option(metavar="I/N", help="Read only every N-th file, from the I-th (0 to N-1): for several machines."),
    ] = "0/1",
) -> None:
    """Turn the corpora into shards.

    Fetches all that training needs, so that it can run where there is no network. Starting it again goes on where it
    was; the shards have the same bytes whatever the number of processes and shares.
    """
    from megadistill.data.prepare import prepare as prepare_data
    from megadistill.run.config import load
    from megadistill.run.presets import resolve
    from megadistill.run.trained import located, teacher_of

    config = load(resolve(file), assignments or [])
    teacher = teacher_of(config)
    for part in (teacher, located(config.student)):  # first: a wrong name shows before hours of text
        if part is not None:
            part.fetch()
    if config.task is not None:
        from megadistill.run.build import augment

        made = augment(config, _share(share))
        typer.echo(f"{config.task.kind}: examples are read when training starts")
        if made is not None:
            typer.echo(f"their variants: {made}")
        return _next("train", file, assignments)
    prepared = prepare_data(config.text, typer.echo, workers=workers, share=_share(share))
    ready = not prepared.unfinished
    if teacher is not None and ready:
        ready = teacher.prepare(config.text, config.seed, typer.echo, _share(share))
    if ready:
        _next("train", file, assignments)
    elif teacher is not None and teacher.answers_first:
        typer.echo(
            "still to do: the teacher's answers; when all shares have ended, run the same command (of an array, the "
            "same line) again, unless one of them has said what is next"
        )


def _next(verb: str, file: Path, assignments: list[str] | None = None) -> None:
    typer.echo(f"next: megadistill {shlex.join([verb, str(file), *(assignments or [])])}")


def _share(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and int(index) < int(number)):
        raise UserError(f"--share {text} is no share", "", "write I/N with I from 0 to N-1, as in --share 0/4")
    return int(index), int(number)


@app.command()
def train(
    file: File,
    assignments: Assignments = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old run is kept beside it.")] = False,
) -> None:
    """Train, or continue the run if it exists.

    Exit codes: 0 done, 1 crash, 2 a mistake you can mend, 85 stopped after a checkpoint (start it again),
    93 starting again would not help.
    """
    from megadistill.train import stop

    stop.install()  # before torch is imported: a signal during those seconds must not be lost

    from megadistill.run.presets import resolve
    from megadistill.train.loop import run

    raise typer.Exit(int(run(resolve(file), assignments or [], fresh)))


@app.command()
def submit(
    file: File,
    assignments: Assignments = None,
    cluster: Annotated[str, typer.Option(metavar="NAME", help="A profile: slurm/clusters/NAME.yaml, or a file.")] = "",
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE...", help="A run for each value, or combination, as one array; may be repeated."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the command.")] = False,
) -> None:
    """Send a run, or a sweep of runs, to Slurm, and print the command that does."""
    from megadistill.run import submit as slurm
    from megadistill.run.config import load
    from megadistill.run.presets import resolve
    from megadistill.run.sweep import members

    if not cluster:
        raise UserError("submit needs --cluster", "a profile of its nodes", "copy slurm/clusters/example.yaml")
    path, given = resolve(file), assignments or []
    config = load(path, given)
    runs = members(config.name, sweep) if sweep else []
    job = slurm.job(slurm.read_cluster(cluster), nodes, config, path, given, runs)
    typer.echo(job)
    if not dry_run:
        typer.echo(slurm.submit(job, dict(os.environ)))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run, or a model in Hugging Face's format.")],
    assignments: Assignments = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas: heldout, wikitext, pseudo_perplexity, speed; glue, or sst2 and alike, squad, "
            "imdb, race to fine-tune on and score. When not given: heldout, or a task's run on its task."
        ),
    ] = None,
    wikitext: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The raw WikiText files.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Score at most so many rows; all when not given.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Holds glue/, squad*/, imdb/, race/.")] = None,
    seeds: Annotated[str, typer.Option(help="To fine-tune with, separated by commas.")] = "0,1,2",
    epochs: Annotated[float, typer.Option(min=0, help="To fine-tune for.")] = 3.0,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A task's config, to distil by.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Of fine-tuned runs.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Fine-tune so many at a time, each on a GPU if there are.")] = 1,
) -> None:
    """Score the student of a run, or a model, as it is or after fine-tuning it on tasks (KEY=VALUE changes how)."""
    from megadistill.evaluate.ask import Request, shown
    from megadistill.evaluate.ask import ask as score

    wanted = None if tasks is None else [task.strip() for task in tasks.split(",") if task.strip()]
    try:
        numbers = tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise UserError(f"--seeds {seeds} are no numbers", "", "write them as in --seeds 0,1,2") from None
    request = Request(wanted, wikitext, rows, data, numbers, epochs, recipe, output, tuple(assignments or ()), jobs)
    typer.echo(shown(score(run, request)))


@app.command()
def export(
    run: Run,
    to: Annotated[str, typer.Option(metavar="hf|onnx|onnx-int8", help="The format.")],
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="By default RUN/export/FORMAT.")] = None,
) -> None:
    """Write the student in a format of other tools."""
    if to == "hf":
        from megadistill.export.hf import export as export_hf

        typer.echo(f"wrote {export_hf(_existing(run), output)}")
    elif to in ("onnx", "onnx-int8"):
        from megadistill.export.onnx import CHECK
        from megadistill.export.onnx import export as export_onnx

        written = export_onnx(_existing(run), to, output)
        typer.echo((written / CHECK).read_text(encoding="utf-8") + f"wrote {written}")
    else:
        raise UserError(f"--to {to}: no such format", "there are: hf, onnx, onnx-int8", "write --to hf")


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_SCORES...", help="Runs, and folders of scores that `evaluate` has written."),
    ],
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="By default RUN/report.html.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Whose scores on tasks the others' are compared with.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about one or more runs, or models that were scored on tasks."""
    from megadistill.report.html import report as write_report

    typer.echo(f"wrote {write_report(runs, output, teacher)}")


@app.command()
def status(run: Run) -> None:
    """Say how far a run is, and what happened to it last."""
    from megadistill.report.status import describe

    typer.echo(describe(_existing(run)))


@app.command()
def verify(run: Run) -> None:
    """Check every byte of every checkpoint of a run."""
    from megadistill.engine.checkpoint import committed
    from megadistill.engine.checkpoint import verify as problems_in

    root = _existing(run) / "checkpoints"
    problems = problems_in(root)
    for problem in problems:
        typer.echo(problem, err=True)
    typer.echo(f"{len(committed(root))} checkpoint(s), {len(problems)} problem(s)")
    raise typer.Exit(int(Exit.CRASH if problems else Exit.DONE))


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="With --ranks: the config of the job.")] = None,
    assignments: Assignments = None,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="Compare the nodes of a job; to be started as its ranks are.")
    ] = False,
    least: Annotated[
        float, typer.Option(metavar="GB/S", help="With --ranks: what an all-reduce must move a second and rank.")
    ] = 0.0,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="With --ranks: how long to wait for the last one.")
    ] = 45.0,
    bad_hosts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --ranks: where to write hosts to leave out, if any.")
    ] = None,
) -> None:
    """Report on this machine, and whether it is fit for a run; or on all nodes of a job."""
    if ranks:
        from megadistill.doctor.preflight import tell

        raise typer.Exit(int(tell(file, assignments or [], least, wait, bad_hosts, typer.echo)))
    from megadistill.doctor.checks import broken, examine, table

    sections = examine()
    typer.echo(table(sections))
    raise typer.Exit(int(Exit.CRASH if broken(sections) else Exit.DONE))


def _existing(run: Path) -> Path:
    if not (run / "run.json").exists():
        raise UserError(
            f"{run} is no run directory",
            "it holds no run.json",
            "name a folder that `megadistill train` has written",
        )
    return run


def _rank() -> int:
    """As in core.dist, which would import torch."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
