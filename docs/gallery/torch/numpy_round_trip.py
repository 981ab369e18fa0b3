"""The covariance is whitened with NumPy, in the middle of the graph."""

import numpy as np
import torch

from gradaudit.backends import registry

torch.manual_seed(0)
x = torch.randn(30, 4, dtype=torch.float64)


def whitened(h):
    values, vectors = np.linalg.eigh((h.T @ h).detach().numpy())  # <- here
    return h @ torch.from_numpy(vectors / np.sqrt(values))


def loss(p):
    return whitened(torch.tanh(x @ p["w"])).pow(4).mean()


model = registry.get("torch").function_model(loss, {"w": torch.randn(4, 3, dtype=torch.float64)})
EXPECTED = "GA101"
