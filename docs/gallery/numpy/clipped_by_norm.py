"""The gradient that is audited is clipped already, to the norm 1."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 5)), 10 * rng.standard_normal((20, 3))


def loss(p):
    return ((x @ p["w"] + p["b"] - y) ** 2).mean()


def gradient(p):
    error = 2 * (x @ p["w"] + p["b"] - y) / y.size
    g = {"w": x.T @ error, "b": error.sum(axis=0)}
    norm = np.sqrt(sum((a**2).sum() for a in g.values()))
    return {name: a * min(1.0, 1.0 / norm) for name, a in g.items()}  # wrong: part of the step, not of the gradient


model = NumpyModel(loss, {"w": rng.standard_normal((5, 3)), "b": np.zeros(3)}, gradient=gradient)
EXPECTED = "GA304"
