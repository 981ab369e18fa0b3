"""Two detaches; that of the constant mask is harmless, that of the scale is not."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)


def loss(p):
    mask = (x > 0).double().detach()
    h = torch.tanh((x * mask) @ p["w"])
    scale = h.std(dim=0).detach()  # <- here
    return ((h / scale - y) ** 2).mean()


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 3, dtype=torch.float64)})
EXPECTED = "GA101"
