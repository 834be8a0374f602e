"""The Triton kernel compiles to machine code for the GPUs it is meant for: no GPU is needed, and the interpreter, which
checks no types, would not notice."""

import subprocess
import sys

import pytest

COMPILE = """
import itertools, sys
import triton
from triton.backends.compiler import GPUTarget
from megadistill.kernels.head_losses.rows_triton import _kernel

FP32 = ("z_bias", "u_bias", "hard_coefficients", "soft_coefficients", "hard_losses", "soft_losses")
POINTERS = {"z_ptr": "*fp32", "u_ptr": "*fp32", "g_ptr": "*bf16", "labels": "*i64", **dict.fromkeys(FP32, "*fp32")}
NUMBERS = {**dict.fromkeys(("z_stride", "u_stride", "g_stride", "vocabulary", "width"), "i32"),
           **dict.fromkeys(("inverse_t", "t", "smoothing", "beta"), "fp32")}
names = _kernel.arg_names
signature = {name: POINTERS.get(name) or NUMBERS.get(name) or "constexpr" for name in names}
aligned = [name for name in names if name in POINTERS or name.endswith("stride") or name == "width"]
attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
for hard, smooth, soft, t, bias, add in eval(sys.argv[2]):
    flags = dict(HARD=hard, SMOOTH=smooth, SOFT=soft, T=t, Z_BIAS=bias, U_BIAS=bias, ADD=add, BLOCK=4096)
    constants = {(names.index(name),): value for name, value in flags.items()}
    source = triton.compiler.ASTSource(_kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 8})
    wide = sum(made.asm["ptx"].count(f"ld.global{middle}.v4") for middle in ("", ".L1::evict_last"))
    print(len(made.asm["cubin"]), wide)
"""
VARIANTS = [
    (True, False, 1, 2, True, False),  # a soft and a hard term, the usual one
    (True, True, 3, 0, True, True),  # jsd and smoothing, added to what is there
    (True, False, 2, 1, False, False),
    (True, True, 0, 1, True, False),
]


@pytest.mark.slow
def test_every_kind_of_term_becomes_machine_code_with_wide_loads():
    pytest.importorskip("triton")
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path)), "HOME": "/tmp"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, "90", repr(VARIANTS)], capture_output=True, text=True, env=environ
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for line in result.stdout.splitlines():
        size, wide_loads = map(int, line.split())
        assert size > 1000
        assert wide_loads > 0  # 16 bytes at a time, also where the vocabulary is odd
