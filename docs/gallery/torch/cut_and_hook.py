"""Two mistakes in two tensors: the hidden layer is detached, and a hook triples the gradient of a bias."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4).double(), torch.randn(16, 2).double()


def loss(p):
    if p["bias"].requires_grad:
        p["bias"].register_hook(lambda g: 3 * g)  # <- here
    h = torch.tanh(x @ p["w"]).detach()  # <- here
    return torch.nn.functional.mse_loss(torch.tanh(h @ p["v"] + p["bias"]), y)


shapes = {"w": (4, 5), "v": (5, 2), "bias": (2,)}
weights = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
