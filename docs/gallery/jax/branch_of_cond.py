"""One branch of a cond stops the gradient; it is the one that is taken."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x, y = rng.standard_normal((16, 4)), rng.standard_normal(16)


def small(h):
    return jax.lax.stop_gradient(h)  # <- here


def loss(p):
    h = x @ p["w"]
    h = h + jax.lax.cond((h**2).mean() > 100, jnp.tanh, small, h)
    return ((h - y) ** 2).mean()


model = registry.get("jax").function_model(loss, {"w": rng.standard_normal(4)})
EXPECTED = "GA101"
