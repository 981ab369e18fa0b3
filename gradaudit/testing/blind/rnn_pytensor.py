"""A recurrent net in PyTensor, truncated as Theano's scan does it."""

import pytensor
import pytensor.tensor as pt

__all__ = ["build"]


def build(labels, n_covered):
    """A loss of the inputs "x" (T, N, D) and the weights."""
    n_steps, n_sequences = labels.shape

    def loss(p):
        def step(x, h, W, R, b):
            return pt.special.softmax(x @ W + h @ R + b, axis=1)

        states = pytensor.scan(
            step,
            sequences=p["x"],
            outputs_info=pt.zeros((n_sequences, p["b"].shape[0]), dtype=p["x"].dtype),
            non_sequences=[p["W"], p["R"], p["b"]],
            truncate_gradient=n_covered if n_covered < n_steps else -1,
            return_updates=False,
        )
        return -pt.log(pt.take_along_axis(states, labels[:, :, None], axis=2)).mean()

    return loss
