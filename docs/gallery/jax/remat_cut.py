"""A block that is recomputed in the backward pass stops the gradient of its input."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x = rng.standard_normal((8, 3))


@jax.checkpoint
def block(w, h):
    inner = jax.lax.stop_gradient(h) @ w  # <- here
    return jnp.tanh(inner) + h


def loss(p):
    return (block(p["second"], jnp.tanh(x @ p["first"])) ** 2).sum()


weights = {"first": rng.standard_normal((3, 3)), "second": rng.standard_normal((3, 3))}
model = registry.get("jax").function_model(loss, weights)
EXPECTED = "GA101"
