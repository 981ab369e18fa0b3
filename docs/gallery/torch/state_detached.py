"""The state of a recurrent net is detached at every step."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(20, 4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)


def loss(p):
    h = torch.zeros(4, 5, dtype=torch.float64)
    for step in x:
        h = h.detach()  # <- here
        h = torch.tanh(step @ p["W"] + h @ p["R"])
    return ((h - y) ** 2).mean()


weights = {"W": torch.randn(3, 5, dtype=torch.float64) / 2, "R": torch.randn(5, 5, dtype=torch.float64) / 2}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
