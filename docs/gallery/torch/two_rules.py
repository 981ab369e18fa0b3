"""Two activations with backwards written by hand in a row: both are wrong."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.cos())
        return x.sin()

    @staticmethod
    def backward(ctx, g):  # <- here
        return g * ctx.saved_tensors[0] ** 2


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):  # <- here
        return g * ctx.saved_tensors[0]


def loss(p):
    return Square.apply(Sine.apply(p["w"])).mean()


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 5).double()})
EXPECTED = "GA501"
