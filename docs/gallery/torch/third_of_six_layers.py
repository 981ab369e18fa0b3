"""Six layers with their own tanh; that of the third has a cube for a square in its backward."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2)


class LowPowerTanh(Tanh):
    @staticmethod
    def backward(ctx, g):  # <- here
        return g * (1 - ctx.saved_tensors[0] ** 3)


x = torch.randn(8, 4, dtype=torch.float64)


def loss(p):
    h = x
    for i, w in enumerate(p.values(), 1):
        h = (LowPowerTanh if i == 3 else Tanh).apply(h @ w)
    return h.pow(2).sum()


weights = {f"w{i}": torch.randn(4, 4, dtype=torch.float64) for i in range(1, 7)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA501"
