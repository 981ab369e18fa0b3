"""A Keras layer inside a block inside a model stops the gradient of its keys."""

import numpy as np
import tensorflow as tf
from keras import layers, ops

from gradaudit.backends import registry

rng = np.random.default_rng(0)
tf.keras.utils.set_random_seed(0)


class Attention(layers.Layer):
    def __init__(self):
        super().__init__(dtype="float64")
        self.query, self.key = layers.Dense(4, dtype="float64"), layers.Dense(4, dtype="float64")

    def call(self, x):
        query, key = self.query(x), tf.stop_gradient(self.key(x))  # <- here
        return ops.softmax(query @ ops.transpose(key)) @ x


x, y = rng.standard_normal((8, 5)), rng.standard_normal((8, 1))
net = tf.keras.Sequential([layers.Input((5,), dtype="float64"), Attention(), layers.Dense(1, dtype="float64")])
names = [v.path for v in net.trainable_variables]


def loss(p):
    output, _ = net.stateless_call([p[name] for name in names], [], x)
    return tf.reduce_mean((output - y) ** 2)


weights = {v.path: v.numpy() for v in net.trainable_variables}
model = registry.get("tensorflow").function_model(loss, weights)
EXPECTED = "GA101"
