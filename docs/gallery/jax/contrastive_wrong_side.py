"""A contrastive loss stops the gradient of the online view, where that of the target was meant."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
one, two = rng.standard_normal((2, 8, 4))


def unit(h):
    return h / jnp.sqrt((h**2).sum(axis=1, keepdims=True))


def loss(p):
    online = unit(jnp.tanh(one @ p["encoder"]) @ p["predictor"])
    online = jax.lax.stop_gradient(online)  # <- here
    target = unit(jnp.tanh(two @ p["encoder"]))
    return -(online * target).sum(axis=1).mean()


weights = {"encoder": rng.standard_normal((4, 5)), "predictor": rng.standard_normal((5, 5))}
model = registry.get("jax").function_model(loss, weights)
EXPECTED = "GA101"
