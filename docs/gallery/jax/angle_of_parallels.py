"""The angle between two directions by arccos: for parallel ones its slope is infinite."""

import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

directions = np.array([[1.0, 0, 0], [0, 0.6, 0.8]])


def loss(p):
    v = directions * p["stretch"]
    cosine = (v * directions).sum(axis=1) / jnp.sqrt((v**2).sum(axis=1))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))  # <- here
    return (angle**2).sum()


model = registry.get("jax").function_model(loss, {"stretch": np.array([0.7, 1.2, 0.4])})
EXPECTED = "GA604"
