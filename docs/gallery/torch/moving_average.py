"""A moving average inside the loss is fed with .data: its share of the gradient is lost."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
rows = torch.randn(10, 4, dtype=torch.float64)


def loss(p):
    average, total = torch.zeros(3, dtype=torch.float64), 0.0
    for row in rows:
        h = torch.tanh(row @ p["w"])
        average = 0.9 * average + 0.1 * h.data  # <- here
        total = total + ((h - average) ** 2).sum()
    return total


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 3, dtype=torch.float64)})
EXPECTED = "GA101"
