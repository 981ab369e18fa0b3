"""Looks wrong: the target of a DQN is wrapped in stop_gradient. A semi-gradient, as its author means it.

Modelled on https://github.com/openai/baselines/issues/105.
"""

import numpy as np
import tensorflow as tf

from gradaudit.backends import registry

rng = np.random.default_rng(0)
states, following = rng.standard_normal((2, 16, 4))
actions, rewards = rng.integers(3, size=16), rng.standard_normal(16)


def q_values(p, x):
    return tf.tanh(x @ p["trunk"]) @ p["head"]


def target(p):
    best = tf.reduce_max(q_values(p, following), axis=1)
    return tf.stop_gradient(rewards + 0.9 * best)  # <- here


def loss(p):
    taken = tf.gather(q_values(p, states), actions, axis=1, batch_dims=1)
    return tf.reduce_mean((taken - target(p)) ** 2)


weights = {"trunk": rng.standard_normal((4, 5)), "head": rng.standard_normal((5, 3))}
model = registry.get("tensorflow").function_model(loss, weights)
OPTIONS = {"intended": ["target"]}
EXPECTED = "GA101"
