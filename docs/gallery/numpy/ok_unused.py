"""Looks wrong: the gradient of the output scale is exactly zero. So is the derivative: it is divided out."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 3))


def loss(p):
    h = p["scale"] * np.tanh(x @ p["w"])
    return ((h / p["scale"] - y) ** 2).mean()


def gradient(p):
    h = np.tanh(x @ p["w"])
    return {"scale": np.zeros(()), "w": x.T @ (2 * (h - y) * (1 - h**2)) / y.size}


model = NumpyModel(loss, {"scale": np.array(2.0), "w": rng.standard_normal((4, 3))}, gradient=gradient)
EXPECTED = ""
