"""Looks wrong: a square root of zeros under a where. Its argument is masked, too, so that nothing is infinite."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x = torch.randn(10, 3, dtype=torch.float64)
x[4] = 0


def loss(p):
    energy = (x * p["w"]).pow(2).sum(dim=1)
    safe = torch.where(energy > 0, energy, 1.0)
    return torch.where(energy > 0, safe.sqrt(), 0.0).mean()


model = registry.get("torch").function_model(loss, {"w": torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)})
EXPECTED = ""
