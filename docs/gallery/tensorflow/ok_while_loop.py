"""Looks wrong: the gradient of a state 6 turns of a while_loop ago is tiny. It vanishes, rightly."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x, y = rng.standard_normal((6, 3)), rng.standard_normal((1, 4))


@tf.function
def loss(p):
    features = tf.constant(x)

    def turn(t, h):
        return t + 1, tf.tanh(features[t][None] @ p["w"] + 0.1 * h @ p["r"])

    h = tf.while_loop(lambda t, _: t < 6, turn, (0, p["start"]))[1]
    return tf.reduce_mean((h - y) ** 2)


weights = {"w": rng.standard_normal((3, 4)), "r": rng.standard_normal((4, 4)), "start": rng.standard_normal((1, 4))}
model = registry.get("tensorflow").function_model(loss, weights)
EXPECTED = ""
