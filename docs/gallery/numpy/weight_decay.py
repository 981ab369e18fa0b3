"""The gradient that the optimiser uses has the weight decay in it; the loss has not."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 3))


def loss(p):
    return ((np.tanh(x @ p["w"]) - y) ** 2).mean()


def gradient(p):
    h = np.tanh(x @ p["w"])
    g = x.T @ (2 * (h - y) / y.size * (1 - h**2))
    return {"w": g + 0.01 * p["w"]}  # wrong: its penalty is not part of the loss


model = NumpyModel(loss, {"w": rng.standard_normal((4, 3))}, gradient=gradient)
EXPECTED = "GA306"
