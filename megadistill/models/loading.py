"""How a pretrained model comes from a local folder or a hub name, and what is said when it cannot.

What ranks of one machine share (`tests/models/test_sharing.py` measures it): safetensors are mapped, so weights in the
dtype that they are stored in take memory once, as pages of the file, and disks are read once; what is written to later
(a student that learns), or cast to another dtype, becomes a rank's own. Of ranks that want the same model of the hub at
once one downloads each file, while the others wait at the hub cache's lock.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch

from megadistill.core.errors import UserError
from megadistill.core.files import open_to_umask, shipped
from megadistill.models.bilstm import register
from megadistill.models.heads import TaskHead, answers, is_of_head
from megadistill.models.images import ImageModel, load_processor, view_of
from megadistill.models.initialize import seeded
from megadistill.models.signals import LanguageModel


def load_pretrained(
    path: str,
    revision: str | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    attention: str = "sdpa",
) -> LanguageModel:
    """A language model, or a task's model, in the Hugging Face format: whichever its config says.

    Args:
        path: a local folder, or a hub name such as `google-bert/bert-base-uncased`.
        revision: hub branch, tag or commit.
        dtype: of the loaded weights; auto: as they are stored.
        attention: transformers' name of the implementation.

    Raises:
        UserError: no such folder, no network for a hub name, no language model in it, or weights missing from it.
    """
    path = _found(path)
    other = {} if attention == "sdpa" else {"attn_implementation": attention}
    hf, loading = _load(_auto_class(load_config(path, revision)), path, revision=revision, dtype=dtype, **other)
    if loading["mismatched_keys"]:
        # only collected above: refused here by name, where transformers would refuse with a table on stderr
        name, stored, wanted = min(loading["mismatched_keys"])
        raise UserError(
            f"{path}: the weights do not have the shapes of its config.json",
            f"{name} is {list(stored)}, the config says {list(wanted)}",
            "config.json and the weights must belong together",
        )
    if loading["missing_keys"]:
        # transformers would fill them with random numbers and only warn: a teacher that teaches noise
        raise UserError(
            f"{path} lacks weights that {type(hf).__name__} needs",
            ", ".join(sorted(loading["missing_keys"])[:6]),
            "give a checkpoint saved with its language-model head",
        )
    return wrapped(hf, load_processor(path, revision) if answers(hf) == "image" else None)


def load_for_task(path: str, head: TaskHead, seed: int) -> LanguageModel:
    """The body of a model in the Hugging Face format under a task's head: its own where it has that very head, else one
    drawn from `seed`.

    Raises:
        UserError: as for `load_pretrained`; or weights of its body are missing.
    """
    path = _found(path)
    config = load_config(path)
    fields = head.config_fields()
    with seeded(seed):
        hf, loading = _load(task_class(head), path, config=config_with(config, fields), dtype=torch.float32)
    mismatched = {name for name, *_ in loading["mismatched_keys"]}
    absent = sorted(name for name in mismatched | set(loading["missing_keys"]) if not is_of_head(hf, name))
    if absent:
        raise UserError(
            f"{path} lacks weights that {type(hf).__name__} needs",
            ", ".join(absent[:6]),
            "give a folder of a whole model; its config.json and weights must belong together",
        )
    if head.kind == "image":
        refuse_other_view(path, load_processor(path), head.processor)
    return wrapped(hf, head.processor)


def refuse_other_view(path: str, own: Any, processor: Any) -> None:
    """What a model has learnt of images scaled and normalised in one way is lost on others.

    Args:
        own: the model's processor; None: not known.
        processor: the task's.

    Raises:
        UserError: they make other pixels of an image.
    """
    if own is None:
        return
    theirs, ours = view_of(own, path), view_of(processor, "task.processor")
    if theirs != ours:
        raise UserError(
            f"{path} was trained on images made otherwise than the task's",
            f"{theirs} there; {ours} here",
            f"set task.processor: {path}",
        )


def wrapped(hf: Any, processor: Any = None) -> LanguageModel:
    """A transformers model as a signal source.

    Args:
        processor: of an image classifier.
    """
    return ImageModel(hf, processor) if answers(hf) == "image" else LanguageModel(hf)


def task_class(head: TaskHead) -> Any:
    """The transformers class that makes models with such a head."""
    import transformers

    names = {
        "span": "AutoModelForQuestionAnswering",
        "choice": "AutoModelForMultipleChoice",
        "image": "AutoModelForImageClassification",
    }
    return getattr(transformers, names.get(head.kind, "AutoModelForSequenceClassification"))


def config_with(config: Any, fields: dict[str, Any]) -> Any:
    """A copy of a transformers config with other values."""
    config = copy.deepcopy(config)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def _auto_class(config: Any) -> Any:
    """What reads a checkpoint, by the class that wrote it."""
    import transformers

    architecture = (getattr(config, "architectures", None) or [""])[0]
    for endings, name in _CLASSES.items():
        if architecture.endswith(endings):
            return getattr(transformers, name)
    return transformers.AutoModelForCausalLM


_CLASSES = {
    ("ForMaskedLM", "ForPreTraining"): "AutoModelForMaskedLM",
    ("ForSequenceClassification",): "AutoModelForSequenceClassification",
    ("ForQuestionAnswering",): "AutoModelForQuestionAnswering",
    ("ForImageClassification", "ForImageClassificationWithTeacher"): "AutoModelForImageClassification",
    ("ForMultipleChoice",): "AutoModelForMultipleChoice",
}


def _load(auto: Any, path: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        hf, loading = auto.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except Exception as error:  # safetensors, torch and huggingface_hub raise their own, with no common base
        raise _cannot_load(path, error) from error
    return hf, loading


def load_empty(path: str, revision: str | None = None, head: TaskHead | None = None) -> LanguageModel:
    """The model of a local folder, or of a hub name, with its sizes and no weights (on torch's meta device); float32.

    Args:
        head: a task's, over the same body; None: the model's own.

    Raises:
        UserError: there is no such folder, or its config describes no such model.
    """
    config, auto, processor = load_config(path, revision), None, None
    if head is not None:
        config, auto, processor = config_with(config, head.config_fields()), task_class(head), head.processor
        if head.kind == "image":
            refuse_other_view(path, load_processor(_found(path)), processor)
    try:
        with torch.device("meta"):
            return wrapped((auto or _auto_class(config)).from_config(config, dtype=torch.float32), processor)
    except UserError:
        raise
    except Exception as error:  # each architecture checks its fields in its own way
        raise _cannot_load(path, error) from error


def load_config(path: str, revision: str | None = None) -> Any:
    """The transformers config of a local folder or hub name (no weights are read).

    Raises:
        UserError: it is not there, or is no model config.
    """
    from transformers import AutoConfig

    register()
    path = _found(path)
    local = Path(path)
    if _looks_local(path) and not local.is_dir():
        raise UserError(
            f"no model folder {path}",
            "there is no such local folder; it was not looked for on the hub",
            "give a folder in the Hugging Face format, or a hub name",
        )
    if local.is_dir() and not (local / "config.json").exists():
        raise UserError(
            f"{path} is no model folder", "it has no config.json", "give a folder written by save_pretrained"
        )
    try:
        return AutoConfig.from_pretrained(path, revision=revision)
    except Exception as error:  # transformers checks some fields by dataclasses with errors of their own
        raise _cannot_load(path, error) from error


def save_pretrained(model: LanguageModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write `model` as a plain Hugging Face folder; an image model's with its processor.

    Args:
        model: gives the config and the names.
        folder: is created.
        weights: whole tensors by the parameter names of `model`; tied ones once.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    plain = {name.removeprefix("hf."): value.contiguous() for name, value in weights.items()}
    parameters = dict(model.hf.named_parameters(remove_duplicate=False))
    buffers = {name: value for name, value in model.hf.state_dict().items() if name not in parameters}
    model.hf.save_pretrained(folder, state_dict={**buffers, **plain})
    # transformers records the dtype of the live model, which under bf16 is not that of the weights given here
    config = copy.deepcopy(model.hf.config)
    config.dtype = next((value.dtype for value in plain.values() if value.is_floating_point()), config.dtype)
    config.save_pretrained(folder)
    if isinstance(model, ImageModel) and model.processor is not None:
        model.processor.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        open_to_umask(file)


def first_line(error: Exception) -> str:
    """The first non-empty line of a library's message, and the next where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])


def _found(path: str) -> str:
    return str(Path(shipped(path)).expanduser()) if path.startswith("~") else shipped(path)


def _looks_local(path: str) -> bool:
    """Whether a path is surely no hub name, whose `owner/name` looks like a folder in a folder.

    Asking the hub for a mistyped run takes half a minute where there is no network.
    """
    first, slash, rest = path.partition("/")
    if path.startswith(("/", "./", "../", "runs/")) or "/" in rest:
        return True
    return bool(slash) and Path(first).is_dir()


def _cannot_load(path: str, error: Exception) -> UserError:
    if Path(path).is_dir():
        return UserError(
            f"cannot load the model {path}",
            first_line(error),
            "check the folder: config.json and model.safetensors must belong together, and be whole",
        )
    return UserError(
        f"no model {path!r}: no such local folder, and not on the hub, or there is no network",
        first_line(error),
        "check the name; run `megadistill prepare` where there is network, or give a local folder",
    )
