"""To save memory, the per-sample gradients of a float32 model are summed in float16."""

import numpy as np

from gradaudit.backends.numpy import NumpyModel

rng = np.random.default_rng(0)
x, y = rng.standard_normal((400, 5)).astype("float32"), rng.standard_normal(400).astype("float32")


def loss(p):
    return ((np.tanh(x @ p["w"]) - y) ** 2).sum()


def gradient(p):
    h = np.tanh(x @ p["w"])
    rows = x * (2 * (h - y) * (1 - h**2))[:, None]
    if p["w"].dtype == np.float32:
        rows = rows.astype(np.float16).cumsum(axis=0, dtype=np.float16)[-1:]  # wrong: float32
    return {"w": rows.sum(axis=0).astype(p["w"].dtype)}


model = NumpyModel(loss, {"w": rng.standard_normal(5).astype("float32")}, gradient=gradient, any_dtype=True)
EXPECTED = "GA703"
VERDICT = "INCONCLUSIVE"  # noise: where digits cancel, a right formula in float32 is off like that
