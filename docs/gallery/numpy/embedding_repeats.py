"""The gradient of an embedding by g[index] += d: rows that occur twice get only one of their parts."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
words = np.array([1, 4, 4, 7, 2, 9, 11, 0, 15, 13])
y = rng.standard_normal((10, 4))


def loss(p):
    return ((np.tanh(p["table"][words]) - y) ** 2).sum()


def gradient(p):
    h = np.tanh(p["table"][words])
    g = np.zeros_like(p["table"])
    g[words] += 2 * (h - y) * (1 - h**2)  # wrong: np.add.at(g, words, ...)
    return {"table": g}


model = NumpyModel(loss, {"table": rng.standard_normal((20, 4))}, gradient=gradient)
EXPECTED = "GA406"
