"""Kernels run on the GPU where there is one, else Triton interprets them on the CPU."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which no test has done yet

from megadistill.kernels import dispatch


@pytest.fixture
def configure():
    """`dispatch.configure`, undone after the test."""
    before = dispatch.settings()
    yield dispatch.configure
    dispatch.configure(**vars(before))
