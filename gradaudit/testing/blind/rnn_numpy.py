"""A recurrent net in NumPy, with a backward pass written by hand."""

import numpy as np

__all__ = ["build"]


def build(labels, n_covered):
    """A loss of the inputs "x" (T, N, D) and the weights, and its gradient."""
    n_steps, n_sequences = labels.shape

    def value_and_grad(p):
        x, dtype = p["x"], p["x"].dtype
        states = np.zeros((n_steps + 1, n_sequences, len(p["b"])), dtype)
        for t in range(n_steps):
            a = x[t] @ p["W"] + states[t] @ p["R"] + p["b"]
            e = np.exp(a - a.max(axis=1, keepdims=True))
            states[t + 1] = e / e.sum(axis=1, keepdims=True)
        wanted = np.eye(len(p["b"]), dtype=dtype)[labels]
        loss = -np.log((states[1:] * wanted).sum(axis=2)).mean()

        g = {name: np.zeros_like(array) for name, array in p.items()}
        back = np.zeros_like(states[0])
        for t in reversed(range(n_steps - n_covered, n_steps)):
            h = states[t + 1]
            back = back - wanted[t] / h / labels.size
            a = h * (back - (back * h).sum(axis=1, keepdims=True))
            g["x"][t] = a @ p["W"].T
            g["W"] += x[t].T @ a
            g["R"] += states[t].T @ a
            g["b"] += a.sum(axis=0)
            back = a @ p["R"].T
        return loss, g

    return value_and_grad
