"""A custom_vjp that clips its cotangent, for stability once, is still there."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)


@jax.custom_vjp
def stable(h):
    return h


def forward(h):
    return h, None


def backward(_, g):  # <- here
    return (jnp.clip(g, -0.01, 0.01),)


stable.defvjp(forward, backward)
x, y = rng.standard_normal((16, 4)), rng.standard_normal((16, 3))


def loss(p):
    return ((stable(jnp.tanh(x @ p["w"])) @ p["v"] - y) ** 2).mean()


model = registry.get("jax").function_model(loss, {"w": rng.standard_normal((4, 5)), "v": rng.standard_normal((5, 3))})
EXPECTED = "GA501"
