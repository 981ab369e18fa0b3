"""Looks wrong: the parameters fit exactly, loss and gradient are both zero. So is the derivative."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x = rng.standard_normal((20, 3))
y = x @ np.array([0.3, -0.7, 0.2])


def loss(p):
    return ((x @ p["w"] - y) ** 2).mean()


def gradient(p):
    return {"w": 2 * x.T @ (x @ p["w"] - y) / 20}


model = NumpyModel(loss, {"w": np.array([0.3, -0.7, 0.2])}, gradient=gradient)
EXPECTED = ""
