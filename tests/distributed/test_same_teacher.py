"""Ranks whose teachers differ are refused, before anything is learnt from either."""

import os
from pathlib import Path

import pytest

from megadistill.data.prepare import prepare
from megadistill.models.loading import save_pretrained
from megadistill.run.config import load
from megadistill.testing import processes, tiny, workspace


@pytest.mark.distributed
def test_another_teacher_on_another_node_is_told_with_both(tmp_path):
    config = workspace.make(tmp_path)
    prepare(load(config).data, lambda line: None)
    homes = [tmp_path / "one", tmp_path / "two"]
    sizes = {"vocab_size": workspace.VOCABULARY, "max_position_embeddings": workspace.LENGTH}
    for seed, home in enumerate(homes):
        model = tiny.language_model("bert", layers=2, seed=seed, **sizes)
        save_pretrained(model, home / "teacher", {name: p.detach() for name, p in model.named_parameters()})
    command = ["-m", "megadistill", "train", str(config), "teacher.path=~/teacher", "plugins=[homes]"]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environ = {"PYTHONPATH": os.pathsep.join(paths), "HOMES": ":".join(map(str, homes))}
    ranks = processes.launch([*command, "batch.micro_size=8"], 2, environ)
    said = ranks[0].communicate(timeout=120)[0]
    assert [rank.wait(timeout=60) for rank in ranks] == [2, 2], said
    assert "has another teacher than rank 0 on" in said
    assert "fix: give all nodes the same folder, or name a commit of the hub" in said
    assert said.count("sha256") == 2
