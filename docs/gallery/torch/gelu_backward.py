"""The backward of a hand-written activation forgets a factor of the chain rule."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(1.702 * x)

    @staticmethod
    def backward(ctx, g):  # <- here
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(1.702 * x)
        return g * (s + x * s * (1 - s))


x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)


def loss(p):
    return torch.nn.functional.mse_loss(QuickGelu.apply(x @ p["w1"]) @ p["w2"], y)


weights = {"w1": torch.randn(4, 6, dtype=torch.float64), "w2": torch.randn(6, 2, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA501"
