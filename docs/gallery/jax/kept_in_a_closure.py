"""A jitted gradient took its parameters from a closure: they were baked in at the first call."""

import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
x, y = rng.standard_normal((16, 4)).astype("float32"), rng.standard_normal(16).astype("float32")
params = {"w": rng.standard_normal(4).astype("float32")}


def mse(p):
    return ((jnp.tanh(x @ p["w"]) - y) ** 2).mean()


@jax.jit
def step():
    return jax.grad(mse)(params)  # wrong: params, an argument


step()
params = {"w": params["w"] + np.float32(0.1)}


class Trainer:
    def parameters(self):
        return params

    def loss(self, p):
        return np.asarray(mse(p))[()]

    def value_and_grad(self, p):
        return self.loss(p), {"w": np.asarray(step()["w"])}


model = Trainer()
EXPECTED = "GA804"
