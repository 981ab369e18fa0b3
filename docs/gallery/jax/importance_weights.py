"""Importance weights that depend on the policy are stopped; the advantages, which are constants, too."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
states, actions, returns = rng.standard_normal((32, 4)), rng.integers(3, size=32), rng.standard_normal(32)
behaviour = np.full(32, 1 / 3)


def loss(p):
    chosen = jnp.take_along_axis(jax.nn.softmax(states @ p["policy"]), actions[:, None], axis=1)[:, 0]
    advantages = jax.lax.stop_gradient(jnp.asarray(returns - returns.mean()))
    ratio = jax.lax.stop_gradient(chosen / behaviour)  # <- here
    return -(ratio * advantages).mean() + 0.01 * (chosen * jnp.log(chosen)).mean()


model = registry.get("jax").function_model(loss, {"policy": rng.standard_normal((4, 3))})
EXPECTED = "GA101"
