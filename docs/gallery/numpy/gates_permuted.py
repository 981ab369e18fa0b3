"""The gates of an LSTM cell: split as i, f, g, o in the forward pass, put together as i, f, o, g in the backward."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, c0, y = rng.standard_normal((10, 3)), rng.standard_normal((10, 4)), rng.standard_normal((10, 4))


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def value_and_grad(p):
    i, f, g, o = np.split(x @ p["w"], 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c0 + i * g
    error = o * np.tanh(c) - y
    d = 2 * error / y.size
    dc = d * o * (1 - np.tanh(c) ** 2)
    di, df = dc * g * i * (1 - i), dc * c0 * f * (1 - f)
    dg, do = dc * i * (1 - g**2), d * np.tanh(c) * o * (1 - o)
    return (error**2).mean(), {"w": x.T @ np.concatenate([di, df, do, dg], axis=1)}  # wrong: dg, do


model = NumpyModel(lambda p: value_and_grad(p)[0], {"w": rng.standard_normal((3, 16))}, value_and_grad=value_and_grad)
EXPECTED = "GA403"
