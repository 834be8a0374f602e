"""The checkpoint that evaluation and export read."""

from functools import partial

import pytest

from megadistill.core.errors import UserError
from megadistill.engine import checkpoint
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import trained


def save(directory, step):
    def write(folder):
        (folder / "state").write_text(str(step))

    checkpoint.save(
        directory.checkpoints, step, 1, partial(partial, write), {}, lambda: None, checkpoint.Keep(2), print
    )


def test_the_newest_that_verifies_or_what_to_do(tmp_path):
    directory = RunDirectory(tmp_path)
    with pytest.raises(UserError, match="no checkpoint yet"):
        trained(directory)
    for step in (1, 2):
        save(directory, step)
    found = trained(directory)
    assert (found.step, (found.path / "state").read_text()) == (2, "2")
    (found.path / "state").write_text("3")
    assert trained(directory).step == 1
