"""Looks wrong: one parameter is 1e6, another 1e-6, and so are their gradients the other way round. All is right."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 2)), rng.standard_normal(20)


def loss(p):
    return ((np.sin(x[:, 0] * p["small"] * 1e6) + x[:, 1] * p["large"] * 1e-6 - y) ** 2).mean()


def gradient(p):
    inner = x[:, 0] * p["small"] * 1e6
    d = 2 * (np.sin(inner) + x[:, 1] * p["large"] * 1e-6 - y) / 20
    small = (d * np.cos(inner) * x[:, 0]).sum() * 1e6
    return {"small": np.array([small]), "large": np.array([(d * x[:, 1]).sum() * 1e-6])}


model = NumpyModel(loss, {"small": np.array([1.3e-6]), "large": np.array([0.7e6])}, gradient=gradient)
EXPECTED = ""
