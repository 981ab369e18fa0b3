"""A softplus with a rule of its own, whose slope is that of tanh."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)


@jax.custom_jvp
def softplus(a):
    return jnp.logaddexp(a, 0.0)


@softplus.defjvp
def softplus_jvp(primals, tangents):  # <- here
    (a,), (t,) = primals, tangents
    return softplus(a), t * (1 - jnp.tanh(a) ** 2)


x, y = rng.standard_normal((16, 4)), rng.standard_normal((16, 3))


def loss(p):
    return ((jax.jit(softplus)(x @ p["w"]) @ p["v"] - y) ** 2).mean()


model = registry.get("jax").function_model(loss, {"w": rng.standard_normal((4, 5)), "v": rng.standard_normal((5, 3))})
EXPECTED = "GA501"
