"""The gradient of a convolution's kernel is shifted by one: the loop starts at 1 where it should at 0."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
signal, y = rng.standard_normal(40), rng.standard_normal(33)


def windows():
    return np.lib.stride_tricks.sliding_window_view(signal, 8)


def loss(p):
    return ((windows() @ p["kernel"] - y) ** 2).mean()


def gradient(p):
    error = 2 * (windows() @ p["kernel"] - y) / 33
    g = np.zeros(8)
    for k in range(8):
        g[(k + 1) % 8] = signal[k : k + 33] @ error  # wrong: g[k]
    return {"kernel": g}


model = NumpyModel(loss, {"kernel": rng.standard_normal(8)}, gradient=gradient)
EXPECTED = "GA404"
