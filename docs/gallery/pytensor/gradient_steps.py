"""Lasagne's gradient_steps=1 as it is done today: the backward scan covers the last step only."""

import numpy as np
import pytensor
from pytensor import tensor as pt

from gradaudit.backends import registry

rng = np.random.default_rng(0)
labels = rng.integers(3, size=(20, 4))


def loss(p):
    states = pytensor.scan(  # <- here
        lambda x, h, W, R: pt.special.softmax(x @ W + h @ R, axis=-1),
        sequences=[p["x"]],
        outputs_info=[np.zeros((4, 3))],
        non_sequences=[p["W"], p["R"]],
        truncate_gradient=1,
        return_updates=False,
    )
    return -pt.log(pt.take_along_axis(states, labels[:, :, None], axis=2)).mean()


shapes = {"x": (20, 4, 2), "W": (2, 3), "R": (3, 3)}
weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
model = registry.get("pytensor").function_model(loss, weights)
EXPECTED = "GA104"
