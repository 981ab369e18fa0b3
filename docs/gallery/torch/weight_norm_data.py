"""A weight is normalised through .data: the norm counts as a constant."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)


def normalised(w):
    length = w.data.norm(dim=0)  # <- here
    return w / length


def loss(p):
    return torch.nn.functional.mse_loss(torch.tanh(x @ normalised(p["w"])), y)


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 3, dtype=torch.float64)})
EXPECTED = "GA101"
