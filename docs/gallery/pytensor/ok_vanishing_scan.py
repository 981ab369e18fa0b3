"""Looks wrong: of 40 inputs the first has next to no gradient. It vanishes, nothing is truncated."""

import numpy as np
import pytensor
from pytensor import tensor as pt

from gradaudit.backends import registry

rng = np.random.default_rng(0)


def loss(p):
    states = pytensor.scan(
        lambda x, h, W, R: pt.tanh(x @ W + h @ R),
        sequences=[p["x"]],
        outputs_info=[np.zeros((2, 3))],
        non_sequences=[p["W"], p["R"]],
        return_updates=False,
    )
    return (states[-1] ** 2).mean()


weights = {"x": rng.standard_normal((40, 2, 2)), "W": rng.standard_normal((2, 3)), "R": 0.3 * np.eye(3)}
model = registry.get("pytensor").function_model(loss, weights)
EXPECTED = ""
