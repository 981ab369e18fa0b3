"""Batch statistics are assigned to a variable and read back: a variable has no gradient."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x = rng.standard_normal((6, 4))
centre = tf.Variable(np.zeros(3), trainable=False)


def loss(p):
    h = tf.constant(x) @ p["w"]
    centre.assign(tf.reduce_mean(h, axis=0))  # <- here
    return tf.reduce_sum((h - centre) ** 4)


model = registry.get("tensorflow").function_model(loss, {"w": rng.standard_normal((4, 3))})
EXPECTED = "GA101"
MISSES = "GA901, unexplained: a value that goes through a variable is not listed as a cut"
