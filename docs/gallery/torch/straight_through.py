"""Rounded activations with the gradient of the identity: the loss stands still, the gradient does not."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, dtype=torch.float64)


def loss(p):
    h = x @ p["w"]
    h = h + (h.round() - h).detach()  # <- here
    return (h.sum(dim=1) - y).pow(2).mean()


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 3, dtype=torch.float64)})
EXPECTED = "GA101"
