"""Does every preset validate, and say at its top what it is for, how it is run, and what to expect?"""

from __future__ import annotations

import pytest

from megadistill.run.config import load
from megadistill.run.presets import folder, presets

NAMES = [preset.name for preset in presets()]


@pytest.mark.parametrize("preset", presets(), ids=NAMES)
def test_preset(preset) -> None:
    load(preset.path)
    header = "\n".join(preset.header).lower()
    assert 20 < len(preset.purpose) <= 160, "the header's first line says what the preset is for"
    assert "megadistill " in header or "launch/" in header, "the header names the command"
    assert "hardware" in header
    assert any(word in header for word in ("result", "expected", "duration")), "the header says what to expect"


def test_there_are_presets_and_fragments_are_none() -> None:
    assert NAMES
    assert not [name for name in NAMES if name.startswith("base/")]
    assert folder().name == "configs"
