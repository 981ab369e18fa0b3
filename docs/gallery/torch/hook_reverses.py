"""A hook of a domain-adversarial experiment still turns the gradient of the features round."""

import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x, y = torch.randn(16, 4, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
head = torch.randn(5, 2, dtype=torch.float64)


def loss(p):
    features = torch.tanh(x @ p["w"] + p["b"])
    if features.requires_grad:
        features.register_hook(lambda g: -g)  # <- here
    return torch.nn.functional.mse_loss(features @ head, y)


weights = {"w": torch.randn(4, 5, dtype=torch.float64), "b": torch.randn(5, dtype=torch.float64)}
model = registry.get("torch").function_model(loss, weights)
EXPECTED = "GA101"
