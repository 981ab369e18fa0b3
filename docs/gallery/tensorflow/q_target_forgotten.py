"""Both sides of a Q-learning error are stopped: the prediction's stop_gradient is a copy of the target's."""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
states, following = rng.standard_normal((2, 16, 4))
actions, rewards = rng.integers(3, size=16), rng.standard_normal(16)


def loss(p):
    best = tf.reduce_max(following @ p["target"], axis=1)
    target = tf.stop_gradient(rewards + 0.9 * best)
    values = tf.stop_gradient(tf.tanh(states @ p["trunk"]))  # <- here
    taken = tf.gather(values @ p["head"], actions, axis=1, batch_dims=1)
    return tf.reduce_mean((taken - target) ** 2)


weights = {"trunk": rng.standard_normal((4, 5)), "head": rng.standard_normal((5, 3))}
target = {"target": tf.constant(rng.standard_normal((4, 3)))}
model = registry.get("tensorflow").function_model(lambda p: loss({**p, **target}), weights)
EXPECTED = "GA101"
