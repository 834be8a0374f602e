"""The Triton kernels compile to machine code for the GPUs it is meant for: no GPU is needed, and the interpreter, which
checks no types, would not notice."""

import subprocess
import sys

import pytest

from megadistill.kernels.attention_losses import tiles

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


TUPLES = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from megadistill.kernels.attention_losses.relation_kl_triton import _backward, _forward
from megadistill.kernels.hidden_losses.rows_triton import _kernel


def compile(kernel, warps, **given):
    '''Types of arguments by name, tuples of them, or constants.'''
    names, signature, constants, attributes = kernel.arg_names, {}, {}, {}

    def take(path, value):
        if isinstance(value, tuple):
            return tuple(take((*path, number), one) for number, one in enumerate(value))
        if not isinstance(value, str):
            constants[path] = value
            return "constexpr"
        if value[0] == "*" or value == "i32":
            attributes[path] = [["tt.divisibility", 16]]
        return value.replace("odd ", "")

    for number, name in enumerate(names):
        signature[name] = take((number,), given.pop(name))
    assert not given, given
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": warps, "num_stages": 2}
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    ptx = made.asm["ptx"]
    print(len(made.asm["cubin"]), made.metadata.shared, ptx.count("ld.global.v4"), ptx.count("mma"))


for kind, gradient in ((1, True), (2, False), (0, True)):
    states = ("*bf16",) * 3
    compile(_kernel, 2, ours=states, theirs=states, our_strides=("i32",) * 3, their_strides=("i32",) * 3,
            gradients=states, weights=("fp32",) * 3, mask="*u8", upstream="*fp32", losses="*fp32", width="i32",
            LAYERS=3, NORMALIZED=kind > 0, COSINE=kind == 2, GRADIENT=gradient, BLOCK=1024)
for dtype, width, block in eval(sys.argv[2]):
    strides = ("i32", "i32", "i32", 1)
    segments, seen, seen_strides = (None, None, (0, 0, 0)) if width == 64 else ("*i64", "*u8", ("i32", "i32", 1))
    shared = dict(sides=(dtype,) * 4, strides=(strides,) * 4, sums="*fp32", mask="*u8", segments=segments, seen=seen,
                  seen_strides=seen_strides, heads="i32", length="odd i32", width="i32", teacher_width="i32",
                  our_scale="fp32", their_scale="fp32", num_sums="odd i32", BLOCK=block, D=width, E=width)
    compile(_forward, 4, losses="*fp32", CAUSAL=1, **shared)
    for keys in (False, True):
        compile(_backward, 4, upstream="*fp32", gradient=dtype, scale="fp32", KEYS=keys, CAUSAL=1 + keys, **shared)
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_hidden_losses_and_relations_become_machine_code_that_fits(capability):
    pytest.importorskip("triton")
    shapes = [("*bf16", 128, 64), ("*bf16", 256, 32), ("*fp32", 64, 32), ("*fp32", 256, 16)]
    found = [list(map(int, line.split())) for line in compiled(TUPLES, capability, repr(shapes))]
    assert len(found) == 3 + 3 * 4
    assert all(size > 1000 for size, _, _, _ in found)
    assert all(wide_loads > 0 for _, _, wide_loads, _ in found[:3])
    assert all(products > 0 for _, _, _, products in found[3:9])  # bf16, in the matrix units
    for number, (dtype, width, block) in enumerate(shapes):
        size = 2 if dtype == "*bf16" else 4
        counted = tiles.shared_bytes(block, (width, width), (size, size))
        assert all(shared <= counted for _, shared, _, _ in found[3 + 3 * number :][:3])


def compiled(script, *arguments):
    """What it prints, a line for each kernel; in a process where Triton is not the interpreter."""
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path)), "HOME": "/tmp"}
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environ)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


@pytest.mark.slow
def test_every_kind_of_term_becomes_machine_code_with_wide_loads():
    pytest.importorskip("triton")
    for line in compiled(COMPILE, "90", repr(VARIANTS)):
        size, wide_loads = map(int, line.split())
        assert size > 1000
        assert wide_loads > 0  # 16 bytes at a time, also where the vocabulary is odd
