"""A learned threshold is read with .numpy(), for a print once, and used from there on."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x, y = rng.standard_normal((20, 3)), rng.standard_normal(20)


def loss(p):
    threshold = p["threshold"].numpy()  # <- here
    gate = tf.sigmoid(tf.linalg.matvec(x, p["w"]) - threshold)
    return tf.reduce_mean((gate - y) ** 2)


weights = {"threshold": np.array(0.3), "w": rng.standard_normal(3)}
model = registry.get("tensorflow").function_model(loss, weights)
EXPECTED = "GA101"
