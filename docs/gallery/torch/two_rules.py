"""Two activations with backwards written by hand in a row: both are wrong."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):  # <- here
        return g * ctx.saved_tensors[0].cos() ** 2


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):  # <- here
        return g * ctx.saved_tensors[0]


x = torch.randn(16, 4).double()
weights = {"w": torch.randn(4, 5).double(), "v": torch.randn(5, 2).double()}


def loss(p):
    return Square.apply(Sine.apply(x @ p["w"]) @ p["v"]).mean()


model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA501"
