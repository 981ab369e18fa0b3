"""The error is target minus output in the backward pass: the update then needs a plus, and got none."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, labels = rng.standard_normal((20, 4)), np.eye(3)[rng.integers(3, size=20)]


def probabilities(p):
    logits = x @ p["w"] + p["b"]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def loss(p):
    return -np.log((probabilities(p) * labels).sum(axis=1)).mean()


def gradient(p):
    error = (labels - probabilities(p)) / 20  # wrong: the other way round
    return {"w": x.T @ error, "b": error.sum(axis=0)}


model = NumpyModel(loss, {"w": rng.standard_normal((4, 3)), "b": np.zeros(3)}, gradient=gradient)
EXPECTED = "GA303"
