"""The temperature of a distillation loss is held constant by mistake: disconnected_grad around too much."""

import numpy as np
from pytensor import tensor as pt
from pytensor.gradient import disconnected_grad

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x, target = rng.standard_normal((12, 4)), rng.dirichlet(np.ones(3), size=12)


def loss(p):
    scaled = p["W"] / disconnected_grad(pt.exp(p["t"]))  # <- here
    return -(target * pt.special.log_softmax(x @ scaled + 0.1 * p["t"], axis=-1)).sum(axis=1).mean()


model = registry.get("pytensor").function_model(loss, {"W": rng.standard_normal((4, 3)), "t": np.array([0.3])})
EXPECTED = "GA101"
