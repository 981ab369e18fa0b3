"""The definition of a truncated gradient, written out naively: a sum over the kept pairs (loss step, use step).

For every loss step s the derivative of loss_s goes back through the use of the weights at each step u <= s, one chain
of Jacobians per pair. Quadratic in T, no shared code with the backends, float64.
"""

from __future__ import annotations

import numpy as np


def activate(a, kind):
    if kind == "tanh":
        return np.tanh(a)
    if kind == "relu":
        return np.where(a > 0, a, 0.0)
    if kind == "sigmoid":
        return 1 / (1 + np.exp(-a))
    if kind == "softmax":
        e = np.exp(a - a.max())
        return e / e.sum()
    return a


def jacobian(a, kind):
    h = activate(a, kind)
    if kind == "softmax":
        return np.diag(h) - np.outer(h, h)
    slopes = {"tanh": 1 - h**2, "relu": (a > 0) * 1.0, "sigmoid": h * (1 - h), "identity": np.ones_like(a)}
    return np.diag(slopes[kind])


def step_loss(h, label, kind):
    p = h if kind == "softmax" else activate(h, "softmax")
    return -np.log(p[label])


def step_loss_gradient(h, label, kind):
    onehot = np.eye(len(h))[label]
    return -onehot / h if kind == "softmax" else activate(h, "softmax") - onehot


def gradient_by_pairs(weights, features, labels, *, activation, outputs, keeps):
    """The gradients by name; ``keeps(s, u)`` says which pairs count."""
    n_sequences, n_steps, _ = features.shape
    gradients = {name: np.zeros_like(w) for name, w in weights.items()}
    loss = 0.0
    for n in range(n_sequences):
        h = [weights.get("h0", np.zeros(len(weights["b"])))]
        a = [None]
        for x in features[n]:
            a.append(x @ weights["W"] + h[-1] @ weights["R"] + weights["b"])
            h.append(activate(a[-1], activation))
        for s in range(1, n_steps + 1):
            if outputs == "last" and s < n_steps:
                continue
            weight = 1 / n_sequences if outputs == "last" else 1 / (n_sequences * n_steps)
            loss += weight * step_loss(h[s], labels[n, s - 1], activation)
            for u in range(1, s + 1):
                if not keeps(s, u):
                    continue
                chain = step_loss_gradient(h[s], labels[n, s - 1], activation) @ jacobian(a[s], activation)
                for t in range(s - 1, u - 1, -1):
                    chain = chain @ weights["R"].T @ jacobian(a[t], activation)
                gradients["W"] += weight * np.outer(features[n, u - 1], chain)
                gradients["R"] += weight * np.outer(h[u - 1], chain)
                gradients["b"] += weight * chain
                if u == 1 and "h0" in gradients:
                    gradients["h0"] += weight * weights["R"] @ chain
    return loss, gradients
