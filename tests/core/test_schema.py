"""How config files are read."""

import pytest

from megadistill.core.errors import UserError
from megadistill.core.schema import read_yaml


@pytest.mark.parametrize("extends", ["5", "[1]", "{a: b}", "true"])
def test_extends_that_names_no_file_is_told(tmp_path, extends):
    path = tmp_path / "run.yaml"
    path.write_text(f"extends: {extends}\n")
    with pytest.raises(UserError, match="extends must be a path or a list of paths"):
        read_yaml(path)


def test_extends_takes_a_path_or_a_list_of_them(tmp_path):
    (tmp_path / "base.yaml").write_text("a: 1\nb: 1\n")
    for extends in ("base.yaml", "[base.yaml]"):
        (tmp_path / "run.yaml").write_text(f"extends: {extends}\nb: 2\n")
        assert read_yaml(tmp_path / "run.yaml") == {"a": 1, "b": 2}
