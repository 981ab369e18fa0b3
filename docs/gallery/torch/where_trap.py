"""A safe logarithm, masked after the fact: the branch that is not selected has an infinite slope."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x = torch.randn(10, 3, dtype=torch.float64)
x[4] = 0


def loss(p):
    energy = (x * p["w"]).pow(2).sum(dim=1)
    logs = torch.where(energy > 0, energy.sqrt(), torch.zeros(()).double())  # <- here
    return logs.mean()


model = registry.get("torch").function_model(loss, {"w": torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)})
EXPECTED = "GA604"
