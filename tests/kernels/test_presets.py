"""Presets train through the Triton kernels: on a GPU natively and by default, on a CPU in Triton's interpreter."""

from pathlib import Path

import pytest
import torch

from megadistill.kernels import dispatch
from megadistill.kernels.head_losses import rows_triton

# they need pydantic and transformers, which a machine that only measures kernels lacks
run_config = pytest.importorskip("megadistill.run.config")
objectives_step = pytest.importorskip("megadistill.objectives.step")
online = pytest.importorskip("megadistill.teachers.online")
tiny = pytest.importorskip("megadistill.testing.tiny")

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = {"distilbert": "bert", "distilgpt2": "gpt2"}
"""Preset -> its teacher's architecture."""


@pytest.fixture(params=["cuda", "cpu"])
def device(request, configure):
    """Where Triton runs, as this machine chooses by itself or, interpreted, because it is told to."""
    if (request.param == "cuda") != torch.cuda.is_available():
        pytest.skip("no CUDA device" if request.param == "cuda" else "Triton is not interpreted where there is a GPU")
    if request.param == "cpu":
        configure(rows="triton")
    return torch.device(request.param)


@pytest.mark.parametrize("preset", SHAPES)
def test_a_preset_at_toy_size_trains_through_triton(device, preset, monkeypatch):
    config = run_config.load(CONFIGS / f"{preset}.yaml")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    teacher = online.OnlineSource("tiny", tiny.language_model(SHAPES[preset], 3, seed=1).to(device, dtype))
    student = tiny.language_model(config.student.architecture, 2, seed=2).to(device)
    losses = [o.build(student.dims, teacher.dims) for o in config.objectives]
    step = objectives_step.DistillStep(student, config.objectives, losses).to(device)
    optimizer = torch.optim.AdamW(step.parameters(), lr=0.01, betas=config.optimizer.betas)
    launched, rows = [], rows_triton.rows

    def counted(block):
        launched.append((block.z.device.type, block.terms))
        rows(block)

    monkeypatch.setattr(rows_triton, "rows", counted)
    batch = tiny.batch(3).to(device)
    shares = (1 / batch.counts()).float().to(device)
    found = []
    for number in range(4):
        with torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
            loss, _ = step(batch, teacher.signals(batch, step.needs), shares, number + 1)
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in step.parameters())
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert launched == [(device.type, "forward_kl:2.0:0.5,hard:0.0")] * 4
    assert found[-1] < 0.95 * found[0]
    told = dispatch.implementations(device)["head_losses"]
    assert "triton rows" in told
