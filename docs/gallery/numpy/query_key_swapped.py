"""The backward of attention returns the gradients of query and key in the wrong order."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((8, 5)), rng.standard_normal((8, 8))


def loss(p):
    return ((np.tanh((x @ p["query"]) @ (x @ p["key"]).T) - y) ** 2).mean()


def backward(query, key):
    q, k = x @ query, x @ key
    scores = np.tanh(q @ k.T)
    d = 2 * (scores - y) / y.size * (1 - scores**2)
    return x.T @ (d @ k), x.T @ (d.T @ q)


def gradient(p):
    key, query = backward(p["query"], p["key"])  # wrong: query, key
    return {"query": query, "key": key}


weights = {"query": rng.standard_normal((5, 4)) / 2, "key": rng.standard_normal((5, 4)) / 2}
model = NumpyModel(loss, weights, gradient=gradient)
EXPECTED = "GA402"
