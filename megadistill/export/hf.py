"""A trained student as a plain Hugging Face folder that needs no megadistill."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from megadistill.core.errors import UserError
from megadistill.core.files import fsync_directory
from megadistill.data.tokenization import Tokenizer, load_tokenizer
from megadistill.export.card import card
from megadistill.models.loading import load_config
from megadistill.models.signals import tells_texts_apart
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import config_of, trained


def export(run: Path, output: Path | None = None) -> Path:
    """Write weights (safetensors), config, tokenizer or image processor, a card and the run's config.

    Args:
        run: a run directory.
        output: where to; `<run>/export/hf` when not given. It appears whole or not at all.

    Raises:
        UserError: the run has no checkpoint that verifies, or the output exists and was not written by this.
    """
    directory = RunDirectory(run)
    found = trained(directory)
    config = config_of(directory)
    output = output or directory.export / "hf"
    if output.exists() and not (output / "distillation.yaml").exists():
        raise UserError(f"{output} exists and is no export", fix="give another --output")
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(found.path / "student", temporary)
    if config.words is not None:  # an image model's processor is in its checkpoint
        typed = config.attends == "pair" and tells_texts_apart(load_config(str(temporary)))
        write_tokenizer(load_tokenizer(config.words.tokenizer), config.words.sequence_length, temporary, typed)
    shutil.copy(directory.resolved_config, temporary / "distillation.yaml")
    (temporary / "README.md").write_text(card(config, found.step, directory.evaluation), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    fsync_directory(output.parent)
    return output


def write_tokenizer(tokenizer: Tokenizer, length: int, folder: Path, typed: bool) -> None:
    """tokenizer.json with the document frame that training used, and the names of its special tokens.

    Args:
        typed: give the model types of texts too, as it was trained with them.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend, special = tokenizer.backend, tokenizer.special
    backend.encode_special_tokens = False
    names = {role: None if i is None else backend.id_to_token(i) for role, i in special.as_dict().items()}
    framed = [(names["cls"], special.cls), (names["sep"], special.sep)]
    if names["mask"] is not None and all(name is not None for name, _ in framed):
        cls, sep, separators = names["cls"], names["sep"], tokenizer.pair_separators
        kind = 1 if separators == 1 else 0  # RoBERTa and its like tell no texts apart by type
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {' '.join([str(sep)] * separators)} $B:{kind} {sep}:{kind}",
            special_tokens=framed,
        )
    roles: dict[str, Any] = {f"{role}_token": name for role, name in names.items() if name is not None}
    if names["mask"] is None:  # a causal model: its separator opens and ends a text
        roles = {"eos_token": names["sep"], "bos_token": names["cls"] or names["sep"]}
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=length,
        model_input_names=["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"],
        **{k: v for k, v in roles.items() if v},
    ).save_pretrained(folder)
