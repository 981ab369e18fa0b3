"""A worker's gradient buffer is read before this step's backward pass has filled it."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 4)), rng.standard_normal(20)
buffer = {"w": np.zeros(4)}


def loss(p):
    return ((np.tanh(x @ p["w"]) - y) ** 2).mean()


def gradient(p):
    read = buffer["w"]  # wrong: after the next lines
    h = np.tanh(x @ p["w"])
    buffer["w"] = x.T @ (2 * (h - y) * (1 - h**2)) / 20
    return {"w": read}


model = NumpyModel(loss, {"w": rng.standard_normal(4)}, gradient=gradient)
EXPECTED = "GA803"
