"""Files and methods of augmentation, for all tests of it."""

import pytest

from megadistill.models.loading import save_pretrained
from megadistill.tasks.augment.tang import TangAugment
from megadistill.tasks.augment.tinybert import TinyBertAugment
from megadistill.testing import task_files, tiny


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augment")
    task_files.tokenizer(folder / "model")
    words = len((folder / "model" / "vocab.txt").read_text().split())
    model = tiny.language_model("bert", vocab_size=words, max_position_embeddings=32, initializer_range=0.3)
    save_pretrained(model, folder / "model", {name: p.detach() for name, p in model.named_parameters()})
    task_files.vectors(folder / "vectors.txt")
    task_files.tagger(folder / "tagger")
    task_files.sst2(folder / "glue")
    task_files.qqp(folder / "glue")
    return folder


@pytest.fixture
def tinybert(files, tmp_path):
    given = {"language_model": str(files / "model"), "vectors": files / "vectors.txt", "cache": tmp_path / "cache"}
    return lambda **fields: TinyBertAugment(kind="tinybert", **{**given, **fields})


@pytest.fixture
def tang(files, tmp_path):
    given = {"tagger": files / "tagger", "cache": tmp_path / "cache"}
    return lambda **fields: TangAugment(kind="tang", **{**given, **fields})
