"""Looks wrong: (N,) against (N, 1) is broadcast to (N, N). The loss is not the one meant, its gradient is right."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 1))


def loss(p):
    return ((x @ p["w"] - y) ** 2).mean()


def gradient(p):
    error = 2 * (x @ p["w"] - y) / 400
    return {"w": x.T @ error.sum(axis=0)}


model = NumpyModel(loss, {"w": rng.standard_normal(4)}, gradient=gradient)
EXPECTED = ""
