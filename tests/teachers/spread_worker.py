"""One rank that spreads a model; tells how many values of it were ever moved to the device at once."""

import sys

import torch
from torch import nn

from megadistill.core import dist
from megadistill.engine.frozen import spread


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) * self.scale
        return x

    def to(self, *arguments, **options):
        moved.append(sum(parameter.numel() for parameter in self.parameters()))
        return super().to(*arguments, **options)


moved = []
world = dist.from_environment()
device = dist.connect(world, 30)
model = Model().eval().requires_grad_(False)
given = torch.randn(3, 64)
expected = model(given)
spread(model, sys.argv[1] == "offloaded", device, world)
left = sum(parameter.numel() for parameter in model.parameters())
with torch.no_grad():
    assert torch.equal(model(given), expected)
print(f"moved {max(moved, default=0)}, left {left}")
dist.disconnect()
