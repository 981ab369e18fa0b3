"""Attention over rows with map_fn inside a tf.function: the weights are stopped, the values not."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x = rng.standard_normal((6, 5, 4))


@tf.function
def loss(p):
    def pooled(rows):
        scores = tf.linalg.matvec(rows, p["query"])
        weights = tf.stop_gradient(tf.nn.softmax(scores))  # <- here
        return tf.reduce_sum(weights[:, None] * tf.tanh(rows @ p["values"]), axis=0)

    return tf.reduce_mean(tf.map_fn(pooled, tf.constant(x)) ** 2)


weights = {"query": rng.standard_normal(4), "values": rng.standard_normal((4, 3))}
model = registry.get("tensorflow").function_model(loss, weights)
EXPECTED = "GA101"
