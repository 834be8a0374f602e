"""What does a user learn when a checkpoint cannot be cut otherwise?"""

import pytest

from megadistill.core.errors import UserError
from megadistill.engine import elastic


def test_why_the_conversion_failed_is_told(tmp_path):
    with pytest.raises(UserError) as caught:
        elastic.convert(tmp_path / "shards", tmp_path / "universal")
    assert "shards to another layout" in caught.value.what
    assert "FileNotFoundError" in caught.value.why
    assert "the number of ranks" in caught.value.fix
