"""Which dtype a teacher's weights have where the config leaves it open."""

import pytest
import torch

from megadistill.teachers.online import OnlineTeacher


@pytest.mark.parametrize(
    ("device", "native", "asked", "dtype"),
    [
        ("cpu", False, "auto", torch.float32),
        ("cuda", True, "auto", torch.bfloat16),
        ("cuda", False, "auto", torch.float16),
        ("cuda", True, "float16", torch.float16),
        ("cuda", False, "bfloat16", torch.bfloat16),
    ],
)
def test_dtype(device, native, asked, dtype, monkeypatch):
    def supported(including_emulation=True):
        return native or including_emulation  # what torch says of a GPU before Ampere

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert OnlineTeacher(kind="online", path="x", dtype=asked).torch_dtype(torch.device(device)) is dtype
