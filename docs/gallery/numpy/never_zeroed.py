"""Each backward pass adds to the gradients of the one before: they are never set to zero."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 4)), rng.standard_normal(20)
weights = {"w": rng.standard_normal(4)}
grad = {name: np.zeros_like(w) for name, w in weights.items()}


def loss(p):
    return ((np.tanh(x @ p["w"]) - y) ** 2).mean()


def gradient(p):
    h = np.tanh(x @ p["w"])
    grad["w"] = grad["w"] + x.T @ (2 * (h - y) * (1 - h**2)) / 20  # wrong: never zeroed
    return grad


model = NumpyModel(loss, weights, gradient=gradient)
EXPECTED = "GA802"
VERDICT = "INCONCLUSIVE"  # the first gradient is right, the second is not
