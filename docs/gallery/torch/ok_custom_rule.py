"""Looks wrong: an activation with a backward written by hand. It is the derivative of its forward."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(1.702 * x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(1.702 * x)
        return g * (s + 1.702 * x * s * (1 - s))


x, y = torch.randn(16, 4), torch.randn(16, 2)


def loss(p):
    dtype = p["w1"].dtype
    return torch.nn.functional.mse_loss(QuickGelu.apply(x.to(dtype) @ p["w1"]) @ p["w2"], y.to(dtype))


model = registry.get("torch").function_model(loss, {"w1": torch.randn(4, 6), "w2": torch.randn(6, 2)})
EXPECTED = ""
