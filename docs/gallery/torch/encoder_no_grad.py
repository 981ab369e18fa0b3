"""The encoder still runs under no_grad, as it did while it was frozen."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)


def encode(p):
    h = torch.tanh(x @ p["encoder.in"])
    return torch.tanh(h @ p["encoder.out"])


def loss(p):
    with torch.no_grad():  # <- here
        code = encode(p)
    return torch.nn.functional.mse_loss(code @ p["head"], y)


shapes = {"encoder.in": (4, 6), "encoder.out": (6, 5), "head": (5, 2)}
weights = {name: torch.randn(shape, dtype=torch.float64) / 2 for name, shape in shapes.items()}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
