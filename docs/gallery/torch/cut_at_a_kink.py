"""A detached gate in a relu network whose base point is a kink: its biases are zero, and one input is, too."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4).double(), torch.randn(16, 2).double()
x[3] = 0


def loss(p):
    h = torch.relu(x @ p["w"] + p["b"])
    gate = torch.sigmoid(h.sum(dim=1, keepdim=True)).detach()  # <- here
    return torch.nn.functional.mse_loss(gate * (h @ p["v"]), y)


weights = {
    "w": torch.randn(4, 5, dtype=torch.float64),
    "b": torch.zeros(5, dtype=torch.float64),
    "v": torch.randn(5, 2, dtype=torch.float64),
}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
