"""What a user can get wrong is told in one message with exit code 2, before anything is written."""

import shutil

import pytest

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.data.prepare import prepare
from megadistill.run.build import build
from megadistill.run.config import load
from megadistill.testing import tiny, workspace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


def built(path, *assignments, world=1):
    return build(load(path, assignments), World(0, world), tiny.CPU)


def test_all_mistakes_of_a_config_are_told_at_once(config):
    with pytest.raises(UserError) as caught:
        load(config, ["objectives.0.temperatur=2", "bach.global_size=3", "teacher.kind=onlin", "train.steps=many"])
    text = str(caught.value)
    assert "4 problem(s)" in text
    for part in ("did you mean 'temperature'?", "did you mean 'batch'?", "did you mean 'online'?", "train.steps"):
        assert part in text


def test_a_batch_that_does_not_divide_names_the_nearest_that_do(config):
    with pytest.raises(UserError, match=r"8 or 16"):
        built(config, "batch.global_size=12", "batch.micro_size=4", world=2)


def test_no_teacher_folder(config):
    with pytest.raises(UserError, match=r"no model folder \./nowhere"):
        built(config, "teacher.path=./nowhere")


def test_a_folder_without_weights_for_the_head_is_no_teacher(config, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "teacher"
    shutil.copytree(config.parent / "teacher", broken)
    weights = load_file(broken / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "encoder.layer.1" not in name}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights"):
        built(config, f"teacher.path={broken}")


def test_a_teacher_of_another_vocabulary(config, tmp_path):
    from megadistill.models.loading import save_pretrained

    model = tiny.language_model("bert", 2, vocab_size=80, max_position_embeddings=workspace.LENGTH)
    save_pretrained(model, tmp_path / "small", {name: p.detach() for name, p in model.named_parameters()})
    with pytest.raises(UserError, match="the teacher's vocabulary only 80"):
        built(config, f"teacher.path={tmp_path / 'small'}")


def test_rows_longer_than_the_models_positions(config, tmp_path):
    data = load(config, ["data.sequence_length=64", f"data.dir={tmp_path}"])
    prepare(data.data, lambda line: None)
    with pytest.raises(UserError, match=r"data\.sequence_length: it is 64, and the student knows only 32"):
        built(config, "data.sequence_length=64", f"data.dir={tmp_path}")


def test_shards_that_are_not_there_or_were_made_otherwise(config, tmp_path):
    with pytest.raises(UserError, match="megadistill prepare"):
        built(config, f"data.dir={tmp_path}")
    with pytest.raises(UserError, match="rows of 32 tokens"):
        built(config, "data.sequence_length=16")


def test_soft_losses_need_a_teacher(config):
    with pytest.raises(
        UserError, match=r"objectives\.0 \(soft_ce\): it learns from a teacher(.|\n)*objectives\.2 \(cosine\)"
    ):
        load(config, ["teacher=null", "student.architecture=bert", "student.init={kind: random}"])


def test_fp16_needs_a_gpu(config):
    from megadistill.engine.deepspeed import BatchShape, Engine, EngineConfig
    from megadistill.engine.optimizer import OptimizerConfig

    with pytest.raises(UserError, match="fp16 needs a GPU"):
        Engine(EngineConfig(precision="fp16"), OptimizerConfig(), tiny.language_model(), BatchShape(1, 1, 1), tiny.CPU)
