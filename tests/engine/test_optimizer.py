"""Which optimizer is built, and what is said where its settings are another's."""

import pytest
import torch
from torch import nn

from megadistill.core.errors import UserError
from megadistill.engine.optimizer import OptimizerConfig, build_optimizer
from megadistill.run.config import load
from megadistill.run.presets import folder


def test_adadelta_moves_as_zeiler_says():
    """Zeiler 2012, algorithm 1, two steps of it written out."""
    layer = nn.Linear(3, 2)
    config = OptimizerConfig(kind="adadelta", learning_rate=1.0)
    assert config.rho == 0.95
    optimizer = build_optimizer(config, layer)
    value = layer.weight.detach().clone()
    squares, moved = torch.zeros_like(value), torch.zeros_like(value)
    for step in (1.0, -3.0):
        layer.zero_grad()
        (step * layer(torch.arange(3.0)).square().sum()).backward()
        gradient = layer.weight.grad.clone()
        optimizer.step()
        squares = 0.95 * squares + 0.05 * gradient**2
        delta = (moved + 1e-6).sqrt() / (squares + 1e-6).sqrt() * gradient
        moved = 0.95 * moved + 0.05 * delta**2
        value -= delta
        torch.testing.assert_close(layer.weight, value)


def test_settings_of_the_other_kind_are_refused_and_recipes_have_their_own():
    for given in ("{kind: adadelta, betas: [0.9, 0.999]}", "{kind: adamw, rho: 0.9}"):
        with pytest.raises(UserError, match=r"optimizer\.(betas|rho): ad.* has none"):
            load(folder() / "quickstart.yaml", [f"optimizer={given}"])
    for recipe in ("tang_bilstm_sst2", "tang_siamese_qqp"):
        optimizer = load(folder() / "tasks" / f"{recipe}.yaml").optimizer
        assert (optimizer.kind, optimizer.learning_rate, optimizer.rho) == ("adadelta", 1.0, 0.95)
    assert load(folder() / "tasks" / "pkd_skip_sst2.yaml").optimizer.kind == "adamw"
