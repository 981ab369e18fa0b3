"""A layer norm written by hand treats mean and variance as constants in its backward."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        scale = x.var(dim=1, keepdim=True, correction=0).add(1e-5).rsqrt()
        ctx.save_for_backward(scale)
        return (x - x.mean(dim=1, keepdim=True)) * scale

    @staticmethod
    def backward(ctx, g):  # <- here
        (scale,) = ctx.saved_tensors
        return g * scale


x, y = torch.randn(16, 4), torch.randn(16, 6)


def loss(p):
    h = LayerNorm.apply(x.to(p["w"].dtype) @ p["w"])
    return torch.nn.functional.mse_loss(torch.tanh(h), y.to(p["w"].dtype))


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 6)})
EXPECTED = "GA501"
