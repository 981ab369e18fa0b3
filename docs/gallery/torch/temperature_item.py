"""A learned temperature leaves the graph through .item()."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randint(3, (16,))


def loss(p):
    temperature = p["log_temperature"].exp().item()  # <- here
    return torch.nn.functional.cross_entropy(x @ p["w"] / temperature, y)


weights = {"w": torch.randn(4, 3, dtype=torch.float64), "log_temperature": torch.tensor(0.3, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
