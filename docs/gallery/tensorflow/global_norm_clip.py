"""The gradient that the optimiser gets is clipped by its global norm, to 5: for the audit that is another gradient."""

import numpy as np
import tensorflow as tf

rng = np.random.default_rng(0)
x, y = rng.standard_normal((16, 4)), 100 * rng.standard_normal((16, 2))


def mse(w, b):
    return tf.reduce_mean((tf.constant(x) @ w + b - y) ** 2)


class TrainingStep:
    def parameters(self):
        return {"w": np.linspace(-1, 1, 8).reshape(4, 2), "b": np.zeros(2)}

    def loss(self, p):
        return mse(**p).numpy()

    def value_and_grad(self, p):
        leaves = {name: tf.Variable(w) for name, w in p.items()}
        with tf.GradientTape() as tape:
            value = mse(**leaves)
        gradients = tape.gradient(value, list(leaves.values()))
        clipped, _ = tf.clip_by_global_norm(gradients, 5.0)  # wrong: part of the step, not of the gradient
        return value.numpy(), {name: g.numpy() for name, g in zip(leaves, clipped, strict=True)}


model = TrainingStep()
EXPECTED = "GA304"
