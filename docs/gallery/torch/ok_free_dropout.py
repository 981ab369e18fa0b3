"""Looks wrong: dropout with a mask of its own at each call. With the mask held, the gradient is right."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x = torch.randn(16, 4, dtype=torch.float64)


def loss(p):
    return torch.nn.functional.dropout(torch.tanh(x @ p["w"]), 0.5).pow(2).mean()


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 5, dtype=torch.float64)})
EXPECTED = "GA801"
VERDICT = "AGREE"
