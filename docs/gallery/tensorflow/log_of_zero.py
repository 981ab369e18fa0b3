"""An entropy p log p with a probability that is exactly 0: the logarithm's slope is infinite, times 0."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x = rng.standard_normal((10, 4))


def loss(p):
    h = tf.nn.relu(x @ p["w"])
    share = h / tf.reduce_sum(h, axis=0)
    logs = tf.math.log(share)  # <- here
    return -tf.reduce_sum(tf.where(share > 0, share * logs, 0.0))


model = registry.get("tensorflow").function_model(loss, {"w": rng.standard_normal((4, 3))})
EXPECTED = "GA604"
MISSES = "the next line, where the infinite logarithm is multiplied: there the backward pass stops being finite"
