"""Looks wrong: stop_gradient and .numpy() where the parameters play no part. Nothing is lost."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x, y = tf.constant(rng.standard_normal((16, 4))), rng.standard_normal(16)


def loss(p):
    mean, spread = tf.reduce_mean(x, axis=0), tf.math.reduce_std(x, axis=0).numpy()
    features = tf.stop_gradient((x - mean) / spread)
    return tf.reduce_mean((tf.tanh(tf.linalg.matvec(features, p["w"])) - y) ** 2)


model = registry.get("tensorflow").function_model(loss, {"w": rng.standard_normal(4)})
EXPECTED = ""
