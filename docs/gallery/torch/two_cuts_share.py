"""Two detaches, in the gate and in the skip connection: each takes its part."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 4, dtype=torch.float64)


def loss(p):
    h = torch.tanh(x @ p["w"])
    gate = torch.sigmoid(h @ p["g"]).detach()  # <- here
    skip = h.detach()  # <- here
    out = gate * torch.tanh(h @ p["v"]) + (1 - gate) * skip
    return ((out - y) ** 2).mean()


weights = {name: torch.randn(4, 4, dtype=torch.float64) / 2 for name in ("w", "g", "v")}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
