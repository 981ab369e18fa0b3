"""Lengths below a half are replaced by 1 in a where; that of a zero row has an infinite slope all the same.

Modelled on https://github.com/jax-ml/jax/issues/347.
"""

import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

x = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])


def loss(p):
    lengths = jnp.sqrt(((x * p["scale"]) ** 2).sum(axis=1))  # <- here
    return jnp.where(lengths > 0.5, lengths, 1.0).sum()


model = registry.get("jax").function_model(loss, {"scale": np.array([0.7, 1.2])})
EXPECTED = "GA604"
