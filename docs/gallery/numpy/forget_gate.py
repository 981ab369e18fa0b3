"""The forget gate of a GRU-like cell has the slope of tanh in the backward pass: one of three blocks is wrong."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, h0, y = rng.standard_normal((12, 4)), rng.standard_normal((12, 5)), rng.standard_normal((12, 5))


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def value_and_grad(p):
    f, i, c = np.split(x @ p["w"], 3, axis=1)
    f, i, c = sigmoid(f), sigmoid(i), np.tanh(c)
    error = f * h0 + i * c - y
    d = 2 * error / y.size
    df = d * h0 * (1 - f**2)  # wrong: f * (1 - f)
    di, dc = d * c * i * (1 - i), d * i * (1 - c**2)
    return (error**2).mean(), {"w": x.T @ np.concatenate([df, di, dc], axis=1)}


model = NumpyModel(lambda p: value_and_grad(p)[0], {"w": rng.standard_normal((4, 15))}, value_and_grad=value_and_grad)
EXPECTED = "GA406"
