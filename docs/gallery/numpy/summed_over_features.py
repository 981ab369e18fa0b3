"""The gradient of a layer's gain is summed over the features, too, and broadcasting mends its shape."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((2, 20, 6))


def loss(p):
    return ((x * p["gain"] - y) ** 2).mean()


def gradient(p):
    g = 2 * (x * p["gain"] - y) * x / y.size
    return {"gain": np.full(6, g.sum())}  # wrong: g.sum(axis=0)


model = NumpyModel(loss, {"gain": rng.standard_normal(6)}, gradient=gradient)
EXPECTED = "GA407"
