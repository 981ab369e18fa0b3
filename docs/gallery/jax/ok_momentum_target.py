"""Looks wrong: the target view of a contrastive loss is stopped. That is the method, and its author says so."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
one, two = rng.standard_normal((2, 8, 4))


def target(p):
    return jax.lax.stop_gradient(jnp.tanh(two @ p["encoder"]))  # <- here


def loss(p):
    online = jnp.tanh(one @ p["encoder"]) @ p["predictor"]
    return ((online - target(p)) ** 2).mean()


weights = {"encoder": rng.standard_normal((4, 5)), "predictor": rng.standard_normal((5, 5))}
model = registry.get("jax").function_model(loss, weights)
OPTIONS = {"intended": ["target"]}
EXPECTED = "GA101"
