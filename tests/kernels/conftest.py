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
def bf16(monkeypatch):
    """torch.bfloat16; the interpreter then rounds to it, where it cuts off, and multiplies its values, where it takes
    their bits for integers."""
    if not torch.cuda.is_available():
        from triton.language import bfloat16, float32
        from triton.runtime import interpreter

        convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

        def rounded(values, given, wanted, mode):
            if (given, wanted) != (float32, bfloat16):
                return convert(values, given, wanted, mode)
            return torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy()

        def product(builder, a, b, *rest):
            wide = [builder.cast_impl(one, float32) if one.dtype.scalar == bfloat16 else one for one in (a, b)]
            return dot(builder, *wide, *rest)

        monkeypatch.setattr(interpreter, "_convert_float", rounded)
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", product)
    return torch.bfloat16


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
