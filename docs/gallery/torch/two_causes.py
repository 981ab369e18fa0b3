"""Two mistakes in two tensors: a gate is detached, and the other layer's activation has a wrong backward."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]  # wrong, too: 2 * g


x = torch.randn(16, 4).double()


def loss(p):
    h = torch.tanh(x @ p["one"])
    gated = h * torch.sigmoid(h).detach()  # <- here
    return gated.mean() + Square.apply(x @ p["other"]).mean()


weights = {"one": torch.randn(4, 3, dtype=torch.float64), "other": torch.randn(4, 3, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
