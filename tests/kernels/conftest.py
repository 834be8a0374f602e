"""Kernels run on the GPU where there is one, else Triton interprets them on the CPU."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which no test has done yet

from megadistill.kernels import dispatch
from megadistill.kernels.head_losses.terms import encode


@pytest.fixture
def configure():
    """`dispatch.configure`, undone after the test."""
    before = dispatch.settings()
    yield dispatch.configure
    dispatch.configure(**vars(before))


@pytest.fixture
def run_rows(configure):
    """`run_rows(kind, terms)`: fp32 head losses run that kind of rows; where they cannot, the test is skipped."""

    def use(kind, terms, device):
        configure(rows=kind)
        reason = ""
        try:
            dispatch.row_implementation(torch.device(device), torch.float32, encode(terms), False)
        except ValueError as error:
            reason = str(error)
        assert "could not be built" not in reason
        if reason:
            pytest.skip(reason)

    return use
