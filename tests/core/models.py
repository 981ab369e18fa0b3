"""Small models whose truth is known, and the faults that can be planted in them."""

from __future__ import annotations

import numpy as np

from gradaudit.backends.numpy import NumpyModel


def mlp(fault=None, *, dtype="float64", twin_data=True, seed=0):
    """A two-layer tanh network with a squared error; ``fault`` changes the gradients it returns."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((12, 4)).astype(dtype), rng.standard_normal((12, 2)).astype(dtype)
    parameters = {
        "first": rng.standard_normal((4, 6)).astype(dtype),
        "bias": (0.1 * rng.standard_normal(6)).astype(dtype),
        "second": rng.standard_normal((6, 2)).astype(dtype),
    }

    def value_and_grad(p):
        h = np.tanh(x @ p["first"] + p["bias"])
        error = h @ p["second"] - y
        loss = (error**2).mean()
        out = (2 / error.size * error).astype(dtype)
        inner = out @ p["second"].T * (1 - h**2)
        gradients = {"first": x.T @ inner, "bias": inner.sum(0), "second": h.T @ out}
        return loss, gradients if fault is None else fault(gradients)

    return NumpyModel(lambda p: value_and_grad(p)[0], parameters, value_and_grad=value_and_grad)


def of(loss, gradient, **parameters):
    """A model over named arrays."""
    arrays = {name: np.asarray(p, np.result_type(np.asarray(p).dtype, np.float32)) for name, p in parameters.items()}
    return NumpyModel(loss, arrays, gradient=gradient)


def times(factor, *names):
    """A fault: these tensors (all by default) times a factor."""
    return lambda g: {n: a * np.asarray(factor, a.dtype) if n in names or not names else a for n, a in g.items()}


def replaced(**values):
    """A fault: these gradients instead."""
    return lambda g: g | values
