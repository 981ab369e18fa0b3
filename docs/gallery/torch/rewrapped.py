"""Per-sample weights are computed from the parameters and wrapped anew with torch.tensor."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, dtype=torch.float64)


def loss(p):
    attention = torch.softmax(x @ p["query"], dim=0)
    attention = torch.tensor(attention.tolist(), dtype=torch.float64)  # <- here
    return (attention * (x @ p["w"] - y) ** 2).sum()


weights = {"query": torch.randn(4, dtype=torch.float64), "w": torch.randn(4, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
