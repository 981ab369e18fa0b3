"""A detach in a block inside a stage inside a network: for a debugger once, and forgotten."""

import torch
from torch import nn

from gradaudit.backends import registry

torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        residual = self.a(x).detach()  # <- here
        return torch.tanh(self.b(x)) + residual


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), nn.Tanh())

    def forward(self, x):
        return self.blocks(x)


net = nn.Sequential(nn.Linear(3, 5), Stage(), nn.Linear(5, 1)).double()
x, y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)


def loss(p):
    return nn.functional.mse_loss(torch.func.functional_call(net, p, (x,)), y)


model = registry.get("torch").function_model(loss, dict(net.named_parameters()))
EXPECTED = "GA101"
