"""The model card of an exported student: made of what its run recorded, with nothing filled in by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megadistill.run.config import RunConfig, dump

Tree = dict[str, Any]


def card(run: RunConfig, step: int, evaluation: Path, checked: Tree | None = None) -> str:
    """Markdown with the hub's metadata.

    Args:
        run: the run's config.
        step: of the exported checkpoint.
        evaluation: the run's folder of scores; only those are shown that stand in it.
        checked: of an export to ONNX, what `export.check` found.
    """
    config = dump(run)
    teacher = config["teacher"] or {}
    teacher = teacher.get("of") or teacher  # of a cached one, who was asked
    members = [member["path"] for member in teacher.get("members", [])] or [teacher.get("path") or teacher.get("kind")]
    role = "teacher" if run.distils or not teacher else "first weights from"
    sections = [
        f"# {config['name']}",
        f"{_kind(run)} with megadistill: step {step} of {run.steps}, "
        f"{config['batch']['global_size']} {_what(config)} a step.",
        _list([f"{role}: {', '.join(f'`{m}`' for m in members) if teacher else 'none'}", *_facts(config)]),
        "## Objectives",
        _list([json.dumps({k: v for k, v in o.items() if v is not None}) for o in config["objectives"]]),
        "## Data",
        _list(list(_data(config))),
        "## Scores",
        "\n".join(_scores(evaluation)) or "None were measured.",
        *(["## Beside torch", _list(list(_beside_torch(checked)))] if checked else []),
        "## Limits",
        _limits(config),
        "The whole config is in `distillation.yaml`.",
    ]
    head = "---\nlibrary_name: transformers\ntags: [distillation, megadistill]\n---\n\n"
    return head + "\n\n".join(sections) + "\n"


def _kind(run: RunConfig) -> str:
    if run.task is not None:
        return "Distilled for a task" if run.distils else "Fine-tuned for a task"
    return "Pretrained by distillation" if run.distils else "Pretrained"


_ANSWERS = {"teacher": "teacher", "original": "example's label"}


def _rows(config: Tree) -> Tree:
    rows: Tree = config.get("task") or config["data"]
    return rows


def _what(config: Tree) -> str:
    rows = _rows(config)
    return f"rows of at most {rows['sequence_length']} tokens" if "tokenizer" in rows else "images"


def _facts(config: Tree) -> list[str]:
    rows = _rows(config)
    made = f"tokenizer: `{rows['tokenizer']}`" if "tokenizer" in rows else "images: as `preprocessor_config.json` says"
    return [made, f"seed: {config['seed']}"]


def _data(config: Tree) -> Iterator[str]:
    task = config.get("task")
    if task:
        given = ", ".join(f"{key} {task[key]}" for key in ("name", "version", "max_train_examples") if task.get(key))
        yield f"task {task['kind']}" + (f": {given}" if given else "")
        if made := task.get("augment"):
            yield f"variants of its examples, made by {made['kind']}, answered by the {_ANSWERS[made['answers']]}"
        return
    for corpus in config["data"]["corpora"]:
        yield f"{corpus['name']} ({corpus['kind']})"


def _scores(evaluation: Path) -> Iterator[str]:
    found = sorted(path for path in evaluation.glob("*.json") if not path.name.endswith("_rows.json"))
    if found:
        yield "| measured on | metric | value |\n|---|---|---|"
    for path in found:
        for name, value in json.loads(path.read_text(encoding="utf-8")).items():
            if isinstance(value, int | float):
                yield f"| {path.stem} | {name} | {value:.6g} |"


def _beside_torch(checked: Tree) -> Iterator[str]:
    yield f"answers to {checked['num_rows']} rows differ by {checked['relative_error']:.2g} of their spread"
    for name, value in checked["scores"].items():
        yield f"{name}: {value['onnx']:.6g}, torch's {value['torch']:.6g}"
    seconds = f"{checked['seconds_onnx']:.3g} s for some rows, one at a time, torch {checked['seconds_torch']:.3g} s"
    yield f"{seconds} ({checked['threads']} threads); {checked['bytes']:,} bytes, torch's {checked['bytes_torch']:,}"


def _limits(config: Tree) -> str:
    if config.get("task"):
        return (
            "Scores are on the task's dev set, with the last step's weights. It answers this task only, on "
            f"{'text' if 'tokenizer' in config['task'] else 'images'} like the task's."
        )
    return (
        "A language model: it repeats what its text says, right or wrong, and what its teacher had learnt from others."
    )


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
