"""The loss has the factor 1/2 that makes the derivative tidy; the derivative has the 2 all the same."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))


def loss(p):
    return 0.5 * ((np.tanh(x @ p["w"] + p["b"]) - y) ** 2).mean()


def gradient(p):
    h = np.tanh(x @ p["w"] + p["b"])
    a = 2 * (h - y) / y.size * (1 - h**2)  # wrong: the 2
    return {"w": x.T @ a, "b": a.sum(axis=0)}


model = NumpyModel(loss, {"w": rng.standard_normal((3, 2)), "b": rng.standard_normal(2)}, gradient=gradient)
EXPECTED = "GA301"
