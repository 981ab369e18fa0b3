"""The embedding is a plain tensor that the tape does not watch: its gradient is None."""

import numpy as np
import tensorflow as tf

rng = np.random.default_rng(0)
words, y = rng.integers(6, size=12), rng.standard_normal(12)


def mse(p):
    return tf.reduce_mean((tf.linalg.matvec(tf.tanh(tf.gather(p["table"], words)), p["w"]) - y) ** 2)


class TrainingStep:
    def parameters(self):
        return {"table": np.linspace(-1, 1, 24).reshape(6, 4), "w": np.array([0.3, -0.7, 1.1, 0.2])}

    def loss(self, p):
        return mse(p).numpy()

    def value_and_grad(self, p):
        leaves = {"table": tf.constant(p["table"]), "w": tf.Variable(p["w"])}
        with tf.GradientTape() as tape:
            value = mse(leaves)  # wrong: tape.watch(leaves["table"]) before
        gradients = tape.gradient(value, leaves)
        return value.numpy(), {name: None if g is None else g.numpy() for name, g in gradients.items()}


model = TrainingStep()
EXPECTED = "GA201"
