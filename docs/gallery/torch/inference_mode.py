"""The gate is computed in inference mode, which was right while it was frozen."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x = torch.randn(16, 4, dtype=torch.float64)


def loss(p):
    with torch.inference_mode():  # <- here
        gate = torch.sigmoid(x @ p["gate"])
    return (gate.clone() * (x @ p["w"])).pow(2).mean()


weights = {"gate": torch.randn(4, 3, dtype=torch.float64), "w": torch.randn(4, 3, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
