"""The square of linalg.norm where a row is zero: the norm has no derivative there, though its square has.

Modelled on https://github.com/jax-ml/jax/issues/21723.
"""

import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x = rng.standard_normal((6, 3))
x[2] = 0


def loss(p):
    lengths = jnp.linalg.norm(x * p["scale"], axis=1)  # <- here
    return (lengths**2).sum()


model = registry.get("jax").function_model(loss, {"scale": rng.standard_normal(3)})
EXPECTED = "GA604"
