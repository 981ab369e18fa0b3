"""A log1pexp with a gradient of its own: it ignores the gradient that comes in."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)


@tf.custom_gradient
def log1pexp(x):
    e = tf.exp(x)

    def gradient(_upstream):  # <- here
        return 1 - 1 / (1 + e)

    return tf.math.log(1 + e), gradient


x, y = rng.standard_normal((16, 4)), rng.standard_normal((16, 2))


def loss(p):
    return tf.reduce_mean((log1pexp(x @ p["w"]) @ p["v"] - y) ** 2)


weights = {"w": rng.standard_normal((4, 5)), "v": rng.standard_normal((5, 2))}
model = registry.get("tensorflow").function_model(loss, weights)
EXPECTED = "GA501"
