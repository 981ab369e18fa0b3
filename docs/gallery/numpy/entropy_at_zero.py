"""p log p is 0 at p = 0 by a where; its gradient log p + 1 times a zero is NaN."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x = rng.standard_normal((6, 3))
x[2] = 0


def loss(p):
    e = (x * p["w"]) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(e > 0, e * np.log(e), 0.0).sum()


def gradient(p):
    e = (x * p["w"]) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        de = np.log(e) + 1  # wrong: mask e before the logarithm
        return {"w": (de * 2 * x**2 * p["w"]).sum(axis=0)}


model = NumpyModel(loss, {"w": rng.standard_normal(3)}, gradient=gradient)
EXPECTED = "GA604"
