"""Looks wrong: dropout in training mode. Its mask is drawn from a fixed seed: a function like any other."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(32, 4).double(), torch.randn(32, 1).double()


def loss(p):
    torch.manual_seed(1)
    h = torch.nn.functional.dropout(torch.tanh(x @ p["w"]), 0.5)
    return torch.nn.functional.mse_loss(h @ p["v"], y)


weights = {"w": torch.randn(4, 5, dtype=torch.float64), "v": torch.randn(5, 1, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = ""
