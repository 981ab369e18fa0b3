"""Only the last 4 of 24 steps are differentiated: the state before them is stopped. The inputs are audited, too."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
y = rng.standard_normal(5)


def loss(p):
    def step(h, x):
        return jnp.tanh(x @ p["w"] + h @ p["r"]), None

    h, _ = jax.lax.scan(step, jnp.zeros(5), p["x"][:20])
    h = jax.lax.stop_gradient(h)  # <- here
    h, _ = jax.lax.scan(step, h, p["x"][20:])
    return ((h - y) ** 2).mean()


shapes = {"x": (24, 3), "w": (3, 5), "r": (5, 5)}
model = registry.get("jax").function_model(loss, {name: rng.standard_normal(s) for name, s in shapes.items()})
EXPECTED = "GA104"
