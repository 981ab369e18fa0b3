"""All pairwise distances, the diagonal included: sqrt(0) has an infinite slope.

Modelled on https://github.com/jax-ml/jax/issues/654.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
labels = rng.standard_normal((5, 5))


@jax.jit
def distances(points):
    difference = points[:, None] - points[None]
    return jnp.sqrt((difference**2).sum(axis=-1))  # <- here


def loss(p):
    apart = jnp.where(jnp.eye(5) == 1, 0.0, distances(jnp.tanh(p["points"])) - labels)
    return (apart**2).mean()


model = registry.get("jax").function_model(loss, {"points": rng.standard_normal((5, 2))})
EXPECTED = "GA604"
