"""Inside a tf.function, one of two activations scales its gradient by 1 / keep where the forward pass does not."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)


@tf.custom_gradient
def scaled(h):
    def gradient(upstream):  # <- here
        return upstream / 0.9

    return tf.identity(h), gradient


@tf.custom_gradient
def swish(h):
    s = tf.sigmoid(h)
    return h * s, lambda upstream: upstream * (s + h * s * (1 - s))


x, y = rng.standard_normal((16, 4)).astype("float32"), rng.standard_normal((16, 2)).astype("float32")


@tf.function
def loss(p):
    dtype = p["w"].dtype
    h = swish(scaled(tf.cast(x, dtype) @ p["w"]))
    return tf.reduce_mean((h @ p["v"] - tf.cast(y, dtype)) ** 2)


weights = {"w": rng.standard_normal((4, 5)).astype("float32"), "v": rng.standard_normal((5, 2)).astype("float32")}
model = registry.get("tensorflow").function_model(loss, weights)
EXPECTED = "GA501"
