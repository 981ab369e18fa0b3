"""The hidden bias is left out of the backward pass: its gradient stays zero."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 4)), rng.standard_normal(20)


def loss(p):
    return ((np.tanh(x @ p["w"] + p["b"]) @ p["v"] - y) ** 2).mean()


def gradient(p):
    h = np.tanh(x @ p["w"] + p["b"])
    error = 2 * (h @ p["v"] - y) / 20
    a = np.outer(error, p["v"]) * (1 - h**2)
    return {"w": x.T @ a, "b": np.zeros(5), "v": h.T @ error}  # wrong: b, a.sum(axis=0)


weights = {"w": rng.standard_normal((4, 5)), "b": rng.standard_normal(5), "v": rng.standard_normal(5)}
model = NumpyModel(loss, weights, gradient=gradient)
EXPECTED = "GA201"
