"""The first 17 of 20 steps run under no_grad to save memory; the inputs are audited, too."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
labels = torch.randn(20, 4, 5, dtype=torch.float64)


def loss(p):
    h, states = torch.zeros(4, 5, dtype=torch.float64), []
    for t, x in enumerate(p["x"]):
        with torch.set_grad_enabled(t >= 17):  # <- here
            h = torch.tanh(x @ p["W"] + h @ p["R"])
        states.append(h)
    return ((torch.stack(states) - labels) ** 2).mean()


shapes = {"x": (20, 4, 3), "W": (3, 5), "R": (5, 5)}
weights = {name: torch.randn(shape, dtype=torch.float64) / 2 for name, shape in shapes.items()}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA104"
