"""tf.where with a branch that is infinite where it is not selected: its gradient is NaN all the same.

Modelled on https://github.com/tensorflow/tensorflow/issues/38349.
"""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
x = rng.standard_normal((6, 4))
x[3] = 0


def loss(p):
    h = tf.linalg.matvec(x, p["w"]) ** 2
    inverse = 1.0 / h  # <- here
    return tf.reduce_mean(tf.where(h > 0, tf.exp(-inverse), 0.0))


model = registry.get("tensorflow").function_model(loss, {"w": rng.standard_normal(4)})
EXPECTED = "GA604"
