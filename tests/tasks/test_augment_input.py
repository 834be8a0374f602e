"""What is wrong with a config or a file of augmentation is told before anything is made."""

from pathlib import Path

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.models.loading import save_pretrained
from megadistill.run.config import load
from megadistill.tasks.augment import kept
from megadistill.tasks.glue import GlueTask
from megadistill.testing import tiny

CPU = torch.device("cpu")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "tasks"


def sst2(files, **fields):
    given = {"folder": files / "glue", "tokenizer": str(files / "model"), "sequence_length": 16}
    return GlueTask(kind="glue", name="sst2", **given, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": 0}, "candidates"),
        ({"probability": 1.5}, "probability"),
        ({"samples": 0}, "samples"),
        ({"max_vectors": 0}, "max_vectors"),
    ],
)
def test_settings_out_of_range(tinybert, fields, message):
    with pytest.raises(ValueError, match=message):
        tinybert(**fields)


@pytest.mark.parametrize("fields", [{"mask": -0.1}, {"replace": 1.1}, {"ngram": 2}, {"mask": 0.6, "replace": 0.6}])
def test_probabilities_out_of_range(tang, fields):
    with pytest.raises(ValueError, match=next(reversed(fields))):
        tang(**fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"task.augment.vectors: no .*vectors.txt"),
        ("the 1 2\nfilm 1 x\n", r"vectors.txt:2: no word vector"),
        ("the 1 2\nfilm 1\n", r"vectors.txt:2: no word vector"),
        ("", r"vectors.txt has no vectors"),
    ],
)
def test_what_is_wrong_with_a_file_of_vectors(files, tinybert, tmp_path, text, message):
    if text is not None:
        (tmp_path / "vectors.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        kept.make(tinybert(vectors=tmp_path / "vectors.txt"), sst2(files).examples("train"))
    assert not (tmp_path / "cache").exists()


def test_a_model_that_predicts_no_masks(files, tinybert, tmp_path):
    model = tiny.language_model("gpt2", vocab_size=128)
    save_pretrained(model, tmp_path / "gpt2", {name: p.detach() for name, p in model.named_parameters()})
    with pytest.raises(UserError, match=r"gpt2 is no masked language model\n.*GPT2LMHeadModel"):
        tinybert(language_model=str(tmp_path / "gpt2"), tokenizer=str(files / "model")).maker([], CPU)


def test_a_folder_without_a_tagger_and_a_machine_without_nltk(tang, tmp_path, monkeypatch):
    (tmp_path / "tagger").mkdir()
    with pytest.raises(UserError, match=r"tagger holds no tagger(.|\n)*averaged_perceptron_tagger_eng"):
        tang(tagger=tmp_path / "tagger").check()
    (tmp_path / "tagger" / "averaged_perceptron_tagger_eng.weights.json").write_text("{")
    with pytest.raises(UserError, match=r"task.augment.tagger: cannot read .*tagger"):
        tang(tagger=tmp_path / "tagger").check()
    monkeypatch.setitem(__import__("sys").modules, "nltk.tag.perceptron", None)
    with pytest.raises(UserError, match=r'needs a tagger(.|\n)*pip install "megadistill\[tagger\]"'):
        tang().check()


def test_variants_without_anybody_to_answer_them(files):
    given = [f"task.augment={{kind: tang, tagger: {files / 'tagger'}}}"]
    with pytest.raises(UserError, match=r"task.augment: variants have no labels"):
        load(CONFIGS / "finetune_sst2.yaml", given)
    load(CONFIGS / "finetune_sst2.yaml", [given[0].replace("kind", "answers: original, kind")])
    with pytest.raises(UserError, match=r"augment.*: it changes texts with a class or a number; squad asks for a span"):
        load(CONFIGS / "finetune_squad.yaml", given)
