"""The carry of a scan inside a jitted function is stopped at every step."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
xs, y = rng.standard_normal((30, 3)), rng.standard_normal(4)


@jax.jit
def run(w, r):
    def step(h, x):
        h = jax.lax.stop_gradient(h)  # <- here
        h = jnp.tanh(x @ w + h @ r)
        return h, h

    return jax.lax.scan(step, jnp.zeros(4, w.dtype), xs.astype(w.dtype))


def loss(p):
    _, states = run(p["w"], p["r"])
    return ((states - y) ** 2).mean()


weights = {"w": rng.standard_normal((3, 4)).astype("float32"), "r": rng.standard_normal((4, 4)).astype("float32") / 2}
model = registry.get("jax").function_model(loss, weights)
EXPECTED = "GA101"
