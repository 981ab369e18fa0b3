"""A small recurrent network of its inputs, with the gradient of any truncation by the definition: pair after pair."""

from __future__ import annotations

import numpy as np

from gradaudit.backends.numpy import NumpyModel
from gradaudit.recurrent import none


def network(
    truncation=None, *, steps=24, outputs="all", recurrent=0.9, every=1, change=lambda g: g, dtype="float64", seed=0
):
    """A model of the inputs x (T, N, D), and its step losses: both NumPy. Elman, tanh, squared errors.

    ``every``: only every so many steps has a loss, and the last.
    """
    truncation = truncation or none()
    rng = np.random.default_rng([seed, steps])
    x = {"x": rng.standard_normal((steps, 2, 3)).astype(dtype)}
    W, y = 0.7 * rng.standard_normal((3, 4)), rng.standard_normal((steps, 2, 4))
    R = recurrent * np.linalg.qr(rng.standard_normal((4, 4)))[0]
    last = np.arange(steps) == steps - 1
    weights = last | (np.arange(1, steps + 1) % every == 0) if outputs == "all" else last
    pairs = truncation.pairs(steps)

    def states(p):
        h, found = np.zeros((2, 4), p["x"].dtype), []
        for x in p["x"]:
            h = np.tanh(x @ W.astype(x.dtype) + h @ R.astype(x.dtype))
            found.append(h)
        return np.array(found)

    def step_losses(p):
        errors = states(p) - y.astype(p["x"].dtype)
        return weights.astype(p["x"].dtype) * 0.5 * (errors**2).sum(axis=(1, 2))

    def gradient(p):
        h, g = states(p), np.zeros_like(p["x"])
        for s in range(steps):
            back = (weights[s] * (h[s] - y[s])).astype(g.dtype)
            for u in reversed(range(s + 1)):
                a = back * (1 - h[u] ** 2)
                if pairs[s, u]:
                    g[u] += a @ W.T.astype(g.dtype)
                back = a @ R.T.astype(g.dtype)
        return change(g)

    model = NumpyModel(
        lambda p: step_losses(p).sum(), x, gradient=lambda p: {"x": gradient(p)}, any_dtype=dtype != "float64"
    )
    return model, step_losses
