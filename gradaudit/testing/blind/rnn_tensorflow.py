"""A recurrent net in TensorFlow, a scan in a graph."""

import tensorflow as tf

__all__ = ["build"]


def build(labels, n_covered):
    """A loss of the inputs "x" (T, N, D) and the weights."""
    n_steps, n_sequences = labels.shape

    @tf.function
    def loss(p):
        def step(h, inputs):
            t, x = inputs
            h = tf.nn.softmax(x @ p["W"] + h @ p["R"] + p["b"])
            return tf.where(t < n_steps - n_covered, tf.stop_gradient(h), h)

        start = tf.zeros([n_sequences, p["b"].shape[0]], p["x"].dtype)
        states = tf.scan(step, (tf.range(n_steps), p["x"]), initializer=start)
        return -tf.reduce_mean(tf.math.log(tf.gather(states, labels, axis=2, batch_dims=2)))

    return loss
