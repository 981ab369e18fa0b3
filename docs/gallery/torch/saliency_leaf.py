"""For a saliency map the hidden layer was made a leaf: what is before it learns nothing."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4).double(), torch.randn(16, 2).double()


def loss(p):
    h = torch.tanh(x @ p["w"])
    h = h.detach().requires_grad_()  # <- here
    return torch.nn.functional.mse_loss(h @ p["v"], y)


weights = {"w": torch.randn(4, 5, dtype=torch.float64), "v": torch.randn(5, 2, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
