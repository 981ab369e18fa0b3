"""Dropout with a new mask at each call, and a detached gate."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4).double(), torch.randn(16, 3).double()


def loss(p):
    gate = torch.sigmoid(x @ p["gate"]).detach()  # <- here
    h = torch.nn.functional.dropout(torch.tanh(x @ p["w"]), 0.5)
    return torch.nn.functional.mse_loss(gate * h, y)


weights = {"gate": torch.randn(4, 3, dtype=torch.float64), "w": torch.randn(4, 3, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
VERDICT = "DISAGREE"
