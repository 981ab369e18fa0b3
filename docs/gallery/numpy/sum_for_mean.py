"""The loss is a mean over the batch, the gradient a sum."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((32, 5)), rng.standard_normal(32)


def loss(p):
    return ((x @ p["w"] - y) ** 2).mean()


def gradient(p):
    return {"w": 2 * x.T @ (x @ p["w"] - y)}  # wrong: / 32


model = NumpyModel(loss, {"w": rng.standard_normal(5)}, gradient=gradient)
EXPECTED = "GA301"
