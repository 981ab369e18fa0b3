"""Entries above 2 are clipped inside the backward pass."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((30, 8)), rng.standard_normal(30)


def loss(p):
    return ((x @ p["w"] - y) ** 2).mean()


def gradient(p):
    g = 2 * x.T @ (x @ p["w"] - y) / 30
    return {"w": np.clip(g, -2, 2)}  # wrong: part of the step, not of the gradient


model = NumpyModel(loss, {"w": rng.standard_normal(8)}, gradient=gradient)
EXPECTED = "GA305"
