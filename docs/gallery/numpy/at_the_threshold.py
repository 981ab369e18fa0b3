"""A decision tree's split sits exactly on a sample: the loss jumps, there is no derivative."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

x, y = np.array([0.2, 0.5, 0.9]), np.array([0.1, 0.4, 1.0])


def loss(p):
    left = x <= p["split"][0]  # wrong: p["split"] is one of x
    return ((np.where(left, p["low"][0], p["high"][0]) - y) ** 2).sum()


def gradient(p):
    left, low, high = x <= p["split"][0], p["low"][0], p["high"][0]
    d = 2 * (np.where(left, low, high) - y)
    return {"split": np.zeros(1), "low": np.array([d[left].sum()]), "high": np.array([d[~left].sum()])}


model = NumpyModel(loss, {"split": x[1:2], "low": np.array([0.3]), "high": np.array([0.8])}, gradient=gradient)
EXPECTED = "GA602"
