"""A Function that injects a given gradient ignores the gradient that comes in: its weight 0.1 is lost.

Modelled on https://github.com/ashawkey/stable-dreamfusion/issues/158.
"""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)


class SpecifyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents, gradient):
        ctx.save_for_backward(gradient)
        return (latents * gradient).sum()

    @staticmethod
    def backward(ctx, _scale):  # <- here
        (gradient,) = ctx.saved_tensors
        return gradient, None


views = torch.randn(16, 4, dtype=torch.float64)
guidance = torch.randn(16, 3, dtype=torch.float64)


def loss(p):
    latents = torch.tanh(views @ p["scene"])
    return 0.1 * SpecifyGradient.apply(latents, guidance) + latents.pow(2).mean()


model = registry.get("torch").function_model(loss, {"scene": torch.randn(4, 3, dtype=torch.float64)})
EXPECTED = "GA501"
