"""Looks wrong: logits near 1e6, where a fixed step drowns in rounding. A shifted log-sum-exp is right there."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x = rng.standard_normal((10, 4))


def loss(p):
    logits = 1e6 + x @ p["w"]
    top = logits.max(axis=1)
    return (top + np.log(np.exp(logits - top[:, None]).sum(axis=1))).mean()


def gradient(p):
    logits = x @ p["w"]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {"w": x.T @ (e / e.sum(axis=1, keepdims=True)) / 10}


model = NumpyModel(loss, {"w": rng.standard_normal((4, 3))}, gradient=gradient)
EXPECTED = ""
