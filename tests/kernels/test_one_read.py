"""The kernel that reads logits once: compiled for a GPU by nvcc, and run on threads of the CPU in place of a GPU's."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from megadistill.kernels import build
from megadistill.kernels.head_losses import Hard, Soft, reference_losses, rows_cuda
from megadistill.kernels.head_losses.rows_torch import Block
from megadistill.kernels.head_losses.terms import encode
from megadistill.testing.heads import case, definition, distance, ours

TERMS = {
    "soft T=1": [Soft(1.0)],
    "soft T=2": [Soft(2.0)],
    "hard": [Hard()],
    "smoothed": [Hard(0.1)],
    "soft and hard": [Soft(2.0), Hard()],
    "hard and soft, T=1": [Hard(0.2), Soft(1.0)],
    "T=3 and smoothed": [Soft(3.0), Hard(0.1)],
}


@pytest.fixture(scope="module")
def on_threads():
    """The library of rows_on_threads.cpp."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    header = rows_cuda.SOURCES[1]
    flags = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-fPIC", "-shared", "-pthread"]
    sources = [Path(__file__).with_name("rows_on_threads.cpp"), header]
    library = ctypes.CDLL(str(build.shared_object([compiler, *flags, f"-I{header.parent}"], sources)))
    library.megadistill_cuda_error.restype = ctypes.c_char_p
    return library


@pytest.fixture
def emulated(on_threads, monkeypatch, configure):
    """`rows="cuda"` runs on a CPU: four threads a block, a row in as many blocks as slices of 2 KiB take."""
    monkeypatch.setattr(rows_cuda, "library", lambda: (on_threads, ""))
    monkeypatch.setattr(rows_cuda, "why_not", lambda *_: "")
    monkeypatch.setattr(rows_cuda, "THREADS", 4)
    monkeypatch.setattr(rows_cuda, "SLICE_KIB", 2)
    configure(rows="cuda")


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("vocabulary", [1, 5, 777, 1016])
def test_equal_to_the_definition(emulated, terms, vocabulary):
    """One block and several, slices that end within a group of columns, more blocks than there are groups for."""
    given = case(4, vocabulary, len(terms), scale=4.0)
    found, exact = ours(given.to(torch.float32), terms), definition(given, terms)
    for mine, theirs in zip((found[0], *found[1]), (exact[0], *exact[1]), strict=True):
        assert distance(mine, theirs) <= 1e-5


def block(rows, vocabulary, dtype=torch.float32, room=0):
    """Logits of both models with `room` values behind each row, and what else a row function takes."""
    draw = torch.Generator().manual_seed(rows + vocabulary)
    z, u = (3 * torch.randn(rows, vocabulary + room, generator=draw).to(dtype)[:, :vocabulary] for _ in range(2))
    labels = torch.randint(0, vocabulary, (rows,), generator=draw)
    return z, u, labels, torch.rand(2, rows, generator=draw), torch.full((2, rows), torch.nan)


def wanted(z, u, labels, coefficients, terms):
    z = z.double().requires_grad_()
    identity = torch.eye(z.shape[1], dtype=torch.float64)
    given = [(logits, identity, None) for logits in (z, u.double())]
    losses = reference_losses(given[0], terms, labels, [given[1]])
    (coefficients * losses).sum().backward()
    return losses.detach(), z.grad


@pytest.mark.parametrize(("logits", "gradient"), [("float32", "bfloat16"), ("bfloat16", "bfloat16")])
@pytest.mark.parametrize(("vocabulary", "room"), [(600, 40), (600, 0), (601, 39), (601, 0)])
def test_bf16_and_rows_that_start_anywhere(emulated, logits, gradient, vocabulary, room):
    """Aligned rows are read 16 bytes at a time, others value by value; nothing past the vocabulary is touched."""
    terms = [Soft(2.0), Hard(0.1)]
    z, u, labels, coefficients, losses = block(3, vocabulary, getattr(torch, logits), room)
    whole = torch.full((3, vocabulary + room), 7.0, dtype=getattr(torch, gradient))
    exact = wanted(z, u, labels, coefficients, terms)
    rows_cuda.rows(Block(z, coefficients, encode(terms), losses, whole[:, :vocabulary], u, labels=labels))
    assert distance(losses, exact[0]) <= 1e-5
    assert distance(whole[:, :vocabulary], exact[1]) <= 3e-3
    assert (whole[:, vocabulary:] == 7).all()


def test_in_place_with_a_shorter_teacher_and_a_nan(emulated):
    """Entries that the teacher lacks have probability 0; a row that holds a NaN says so, and no other row does."""
    terms = [Soft(2.0), Hard()]
    z, u, labels, coefficients, losses = block(4, 700)
    u[:, 300:] = -1e30
    exact = wanted(z, u, labels, coefficients, terms)
    z[2, 650] = torch.nan
    rows_cuda.rows(Block(z, coefficients, encode(terms), losses, z, u, labels=labels))
    sound = [0, 1, 3]
    assert distance(losses[:, sound], exact[0][:, sound]) <= 1e-5
    assert distance(z[sound], exact[1][sound]) <= 1e-5
    assert losses[:, 2].isnan().all()
    assert z[2].isnan().all()


def test_ignored_rows_have_no_gradient_and_negative_labels_are_no_address(emulated):
    z, u, labels, coefficients, losses = block(3, 100)
    labels[:], coefficients[:] = -100, 0
    rows_cuda.rows(Block(z, coefficients, encode([Soft(2.0), Hard()]), losses, z, u, labels=labels))
    assert (z == 0).all()
    assert losses.isfinite().all()


def test_equal_models_have_no_loss_and_no_gradient(emulated):
    z, _, _, _, losses = block(3, 900)
    rows_cuda.rows(Block(z, torch.ones(1, 3), encode([Soft(2.0)]), losses[:1], z, z.clone()))
    assert losses[0].abs().max() < 1e-5
    assert z.abs().max() < 1e-6


@pytest.mark.parametrize(("vocabulary", "both", "blocks"), [(30522, True, 4), (30522, False, 2), (128256, True, 16)])
def test_a_row_is_cut_so_that_three_blocks_share_a_multiprocessor(vocabulary, both, blocks):
    assert rows_cuda.blocks_per_row(vocabulary, both) == blocks


def test_what_it_cannot_do_is_said(configure, monkeypatch):
    with pytest.raises(ValueError, match="holds a vocabulary of 456704 entries at most"):
        rows_cuda.blocks_per_row(500_000, True)
    configure(rows="cuda")
    given = case(3, 11).to(torch.float32)
    with pytest.raises(ValueError, match="rows='cuda' cannot run here: not on a CUDA device; use rows='auto'"):
        ours(given, [Soft(2.0), Hard()])
    gpu = torch.device("cuda")
    hard, jsd = encode([Hard()]), encode([Soft(1.0, "jsd")])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert "no thread-block clusters" in rows_cuda.why_not(gpu, hard, torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert "fp64" in rows_cuda.why_not(gpu, hard, torch.float64)
    assert "only one forward_kl" in rows_cuda.why_not(gpu, jsd, torch.float32)
    monkeypatch.setattr(rows_cuda, "library", rows_cuda.library.__wrapped__)
    monkeypatch.setattr(rows_cuda, "compiler", lambda: None)
    assert "no nvcc" in rows_cuda.why_not(gpu, hard, torch.float32)


@pytest.fixture(scope="module")
def nvcc():
    found = rows_cuda.compiler()
    if found is None:
        pytest.skip("no nvcc: pip install 'megadistill[cuda]'")
    return found


@pytest.mark.slow
def test_nvcc_makes_machine_code_for_sm_90(nvcc, tmp_path):
    """Clusters, memory of other blocks, 16-byte accesses, nothing spilled to slow memory."""
    more = [
        "-Xptxas=-v",
        "--keep",
        f"--keep-dir={tmp_path}",
        str(rows_cuda.SOURCES[0]),
        "-o",
        str(tmp_path / "rows.so"),
    ]
    made = subprocess.run([*rows_cuda.command(nvcc), *more], check=True, capture_output=True, text=True, timeout=300)
    assert re.findall(r"(\d+) bytes spill stores", made.stdout + made.stderr) == ["0"] * 5
    registers = re.findall(r"Used (\d+) registers", made.stdout + made.stderr)
    assert all(int(number) * 3 * rows_cuda.THREADS <= 65536 for number in registers)  # three blocks a multiprocessor
    (ptx,) = tmp_path.glob("*.ptx")
    kernels = ptx.read_text().split(".entry")[1:]
    assert len(kernels) == len(registers) == 5
    accesses = ("ld.global.v4", "st.global.v4", "ld.shared.v4", "st.shared.v4")
    for kernel in kernels:
        for instruction in ("mapa", "barrier.cluster.arrive", "barrier.cluster.wait", *accesses):
            assert instruction in kernel


@pytest.mark.slow
def test_the_library_is_built_once_and_says_what_cuda_says(nvcc, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library, reason = rows_cuda.library.__wrapped__()
    assert (reason, library.megadistill_cuda_error(0)) == ("", b"no error")
    (made,) = (tmp_path / "megadistill").iterdir()
    assert made.suffix == ".so"
    monkeypatch.setattr(rows_cuda, "library", lambda: (library, ""))
    z, u, labels, coefficients, losses = block(2, 20)
    with pytest.raises(RuntimeError, match="rows='cuda' could not be launched: "):  # these are a CPU's
        rows_cuda.rows(Block(z, coefficients, encode([Hard()]), losses[:1], z, u, labels=labels))


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    failing = tmp_path / "nvcc"
    failing.write_text("#!/bin/sh\necho 'error: out of ideas' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert rows_cuda.compiler() == str(failing)
    assert rows_cuda.library.__wrapped__() == (None, "csrc/rows.cu could not be built: error: out of ideas")
    assert not list((tmp_path / "cache" / "megadistill").iterdir())
