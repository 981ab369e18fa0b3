"""A logarithm under a where: the branch that is not selected is infinite, and so is its slope."""

import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
counts = np.array([3.0, 0.0, 1.0, 0.0, 2.0])
x = rng.standard_normal((5, 4))


def loss(p):
    rate = counts * jnp.exp(x @ p["w"])
    logs = jnp.log(rate)  # <- here
    return jnp.where(counts > 0, counts * logs - rate, 0.0).sum()


model = registry.get("jax").function_model(loss, {"w": rng.standard_normal(4)})
EXPECTED = "GA604"
