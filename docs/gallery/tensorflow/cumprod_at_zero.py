"""The gradient of cumprod divides by its input, and is 0 where that is 0, although the derivative is not.

Modelled on https://github.com/tensorflow/tensorflow/issues/119430.
"""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry


def loss(p):
    return tf.reduce_sum(tf.math.cumprod(p["x"]))  # <- here


model = registry.get("tensorflow").function_model(loss, {"x": np.array([0.7, 1.3, 0.0, 2.0, -0.4])})
EXPECTED = "GA501"
