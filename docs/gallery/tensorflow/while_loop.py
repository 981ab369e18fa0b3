"""The state of a while_loop inside a tf.function is stopped at every turn."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x, y = rng.standard_normal((6, 3)), rng.standard_normal((1, 4))


@tf.function
def run(w, r):
    features = tf.constant(x)

    def turn(t, h):
        h = tf.stop_gradient(h)  # <- here
        return t + 1, tf.tanh(features[t][None] @ w + h @ r)

    return tf.while_loop(lambda t, _: t < 6, turn, (0, tf.zeros((1, 4), tf.float64)))[1]


def loss(p):
    return tf.reduce_mean((run(p["w"], p["r"]) - y) ** 2)


weights = {"w": rng.standard_normal((3, 4)), "r": rng.standard_normal((4, 4)) / 2}
model = registry.get("tensorflow").function_model(loss, weights)
EXPECTED = "GA101"
