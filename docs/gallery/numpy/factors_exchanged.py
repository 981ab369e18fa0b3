"""The gradient of a square weight is d.T @ x where x.T @ d is right: the shapes fit all the same."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 6)), rng.standard_normal((20, 6))


def loss(p):
    return ((np.tanh(x @ p["w"]) - y) ** 2).mean()


def gradient(p):
    h = np.tanh(x @ p["w"])
    d = 2 * (h - y) / y.size * (1 - h**2)
    return {"w": d.T @ x}  # wrong: x.T @ d


model = NumpyModel(loss, {"w": rng.standard_normal((6, 6))}, gradient=gradient)
EXPECTED = "GA401"
