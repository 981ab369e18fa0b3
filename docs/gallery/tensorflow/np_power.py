"""np.power(x - y, 2) inside the tape: NumPy computes the square of the difference, and it counts as a constant.

Modelled on https://github.com/tensorflow/tensorflow/issues/36793.
"""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x, y = rng.standard_normal((16, 4)), rng.standard_normal(16)


def loss(p):
    prediction = tf.linalg.matvec(x, p["w"])
    squares = np.power(prediction - y, 2)  # <- here
    return tf.reduce_mean(squares) + 0.1 * tf.reduce_sum(p["w"] ** 2)


model = registry.get("tensorflow").function_model(loss, {"w": rng.standard_normal(4)})
EXPECTED = "GA101"
