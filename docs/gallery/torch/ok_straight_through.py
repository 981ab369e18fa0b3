"""Looks wrong: rounded activations with the gradient of the identity, declared as meant."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, dtype=torch.float64)


def rounded(h):
    return h + (h.round() - h).detach()  # <- here


def loss(p):
    return (rounded(x @ p["w"]).sum(dim=1) - y).pow(2).mean()


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 3, dtype=torch.float64)})
OPTIONS = {"intended": ["rounded"]}
EXPECTED = "GA101"
