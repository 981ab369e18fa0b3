"""The standard deviation of features that are all equal: its slope at zero is 0 / 0."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x = torch.randn(8, 4, dtype=torch.float64)
x[3] = 1.0


def loss(p):
    features = x * p["scale"]
    spread = features.var(dim=1).sqrt()  # <- here
    return torch.nn.functional.softplus(spread.pow(2)).mean()


model = registry.get("torch").function_model(loss, {"scale": torch.full((4,), 0.7, dtype=torch.float64)})
EXPECTED = "GA604"
