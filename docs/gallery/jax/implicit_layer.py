"""A fixed point with an implicit backward that solves with J where it needs J transposed."""

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x, y = rng.standard_normal(4), rng.standard_normal(4)


def cell(w, z):
    return jnp.tanh(w @ z + x)


@jax.custom_vjp
def fixed_point(w):
    return jax.lax.scan(lambda z, _: (cell(w, z), None), jnp.zeros(4), length=60)[0]


def forward(w):
    z = fixed_point(w)
    return z, (w, z)


def backward(kept, g):  # <- here
    w, z = kept
    slope = jax.jacobian(cell, argnums=1)(w, z)
    u = jnp.linalg.solve(jnp.eye(4) - slope, g)
    return jax.vjp(lambda w: cell(w, z), w)[1](u)


fixed_point.defvjp(forward, backward)
loss = lambda p: ((fixed_point(p["w"]) - y) ** 2).sum()  # noqa: E731
model = registry.get("jax").function_model(loss, {"w": rng.standard_normal((4, 4)) / 5})
EXPECTED = "GA501"
