"""Does an exported folder, read with transformers alone, answer as the student was trained to?"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megadistill.data.tokenization import load_tokenizer
from megadistill.export.card import card
from megadistill.export.hf import write_tokenizer
from megadistill.models.heads import TaskHead
from megadistill.models.loading import save_pretrained
from megadistill.run.config import load
from megadistill.run.presets import resolve
from megadistill.tasks.encoding import Example, encode
from megadistill.tasks.rows import TaskRows
from megadistill.testing import task_files, tiny


@pytest.mark.parametrize(("name", "typed"), [("bert", True), ("distilbert", False)])
def test_its_tokenizer_tells_a_pairs_texts_apart_where_training_did(tmp_path, name, typed):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = load_tokenizer(str(task_files.tokenizer(tmp_path / "tokenizer")))
    model = tiny.task_model(name, TaskHead("label", 2), vocab_size=128, initializer_range=0.3).eval()
    save_pretrained(model, tmp_path / "hf", {name: p.detach() for name, p in model.named_parameters()})
    write_tokenizer(tokenizer, 16, tmp_path / "hf", model.typed)
    row = TaskRows(encode([Example("f:1", "the film was", "good", 0.0)], "label", 2, tokenizer, 16), 16)
    with torch.no_grad():
        wanted = model.signals(row.take(np.array([0])), frozenset()).head(torch.nn.functional.linear, torch.tensor([0]))
        given = AutoTokenizer.from_pretrained(tmp_path / "hf")("the film was", "good", return_tensors="pt")
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")(**given).logits
    assert ("token_type_ids" in given) == typed
    torch.testing.assert_close(found, wanted)


def test_a_card_names_the_teacher_whose_answers_were_kept(tmp_path):
    of = {"kind": "online", "path": "megadistill/assets/quickstart_teacher"}
    config = load(
        resolve(Path("quickstart")),
        [
            "objectives=[{kind: soft_ce, temperature: 2.0}]",
            "student.init={kind: random}",
            f"teacher={{kind: cached, dir: x, temperature: 2.0, of: {json.dumps(of)}}}",
        ],
    )
    assert "\n- teacher: `megadistill/assets/quickstart_teacher`\n" in card(config, 3, tmp_path)


@pytest.mark.parametrize(
    ("preset", "kind", "role"),
    [
        ("quickstart", "Pretrained by distillation with", "- teacher: `"),
        ("quickstart_plain", "Pretrained with", "- first weights from: `"),
        ("small_bert", "Pretrained with", "- teacher: none"),
        ("tasks/finetune_sst2", "Fine-tuned for a task with", "- teacher: none"),
        ("tasks/hinton_sst2", "Distilled for a task with", "- teacher: `"),
    ],
)
def test_a_card_says_who_taught(tmp_path, preset, kind, role):
    written = card(load(resolve(Path(preset))), 3, tmp_path)
    assert f"\n{kind} megadistill: step 3 of " in written
    assert f"\n{role}" in written
