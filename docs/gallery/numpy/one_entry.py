"""A spline's second derivative at its last knot is left out of the gradient: one entry of many."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
y = rng.standard_normal(12)


def loss(p):
    c = p["knots"]
    return ((c - y) ** 2).sum() + (np.diff(c, 2) ** 2).sum()


def gradient(p):
    c = p["knots"]
    g, bend = 2 * (c - y), 2 * np.diff(c, 2)
    g[:-2] += bend
    g[1:-1] -= 2 * bend
    g[2:-1] += bend[:-1]  # wrong: g[2:] += bend
    return {"knots": g}


model = NumpyModel(loss, {"knots": rng.standard_normal(12)}, gradient=gradient)
EXPECTED = "GA405"
