"""Looks wrong: the gradient of maximum(x, 0) at 0 is a half. The slopes are 0 and 1: any value between is allowed.

Modelled on https://github.com/jax-ml/jax/issues/37821.
"""

import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry


def loss(p):
    return (jnp.maximum(p["x"], 0.0) * np.arange(1.0, 5.0)).sum()


model = registry.get("jax").function_model(loss, {"x": np.array([0.0, 0.7, -0.4, 1.2])})
EXPECTED = "GA601"
