"""The dense and the recurrent layer in NumPy, with hand-written derivatives: the independent reference.

Layout: time first, then K parameter copies, classes, sequences, (T, K, H, N). With sequences innermost, reductions
over few classes run over long rows. Time is walked in blocks, so memory does not grow with T where only the losses
are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.recurrent import Activation

__all__ = [
    "BLOCK",
    "activate",
    "back",
    "cross_entropy",
    "cross_entropy_gradient",
    "dense",
    "jacobian_product",
    "run",
    "tangent",
]

#: Steps whose input products x @ W are formed at once: large enough to amortise, small enough to stay in cache.
BLOCK = 256
#: Below this many classes a BLAS call per parameter copy costs more than the product itself.
_SMALL = 8


def activate(a: Array, activation: Activation) -> Array:
    """H = activation(a), in place; softmax over the classes, axis -2."""
    if activation == "tanh":
        np.tanh(a, out=a)
    elif activation == "relu":
        np.maximum(a, 0, out=a)
    elif activation == "sigmoid":
        # tanh does not overflow where exp(-a) would
        np.multiply(np.tanh(0.5 * a) + 1, 0.5, out=a)
    elif activation == "softmax":
        a -= a.max(axis=-2, keepdims=True)
        np.exp(a, out=a)
        a /= a.sum(axis=-2, keepdims=True)
    return a


def jacobian_product(h: Array, v: Array, activation: Activation) -> Array:
    """(d activation / d a) @ v from the output h. All five Jacobians are symmetric: forward and backward are one."""
    if activation == "tanh":
        return np.asarray(v * (1 - h * h))
    if activation == "relu":
        return np.asarray(v * (h > 0))
    if activation == "sigmoid":
        return np.asarray(v * (h * (1 - h)))
    if activation == "softmax":
        return np.asarray(h * (v - (h * v).sum(axis=-2, keepdims=True)))
    return v


def dense(parameters: NamedArrays, inputs: Array, activation: Activation) -> Iterator[tuple[slice, Array]]:
    """activation(x @ W + b) of inputs (T, N, D) with parameters (K, ...), as blocks (B, K, H, N) of one batch."""
    for steps in _blocks(len(inputs)):
        yield steps, activate(_input_product(parameters, inputs[steps]), activation)


def run(parameters: NamedArrays, inputs: Array, state: Array, activation: Activation) -> Iterator[tuple[slice, Array]]:
    """The hidden states (B, K, H, N) of consecutive blocks of steps, from state (K, H, N) before the first."""
    recurrent = parameters["R"]
    small = recurrent.shape[-1] <= _SMALL
    transposed = np.ascontiguousarray(recurrent.swapaxes(-1, -2))
    for steps in _blocks(len(inputs)):
        states = _input_product(parameters, inputs[steps])
        for t in range(len(states)):
            states[t] += np.einsum("khj,khn->kjn", recurrent, state) if small else transposed @ state
            state = activate(states[t], activation)
        yield steps, states


def _blocks(n_steps: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, n_steps)) for start in range(0, n_steps, BLOCK))


def _input_product(parameters: NamedArrays, inputs: Array) -> Array:
    weight, bias = parameters["W"], parameters["b"]
    (n_copies, n_features, n_hidden), (n_steps, n_sequences, _) = weight.shape, inputs.shape
    flat = weight.swapaxes(1, 2).reshape(-1, n_features) @ inputs.reshape(-1, n_features).T
    product = flat.reshape(n_copies, n_hidden, n_steps, n_sequences) + bias[:, :, None, None]
    return np.ascontiguousarray(product.transpose(2, 0, 1, 3))


def cross_entropy(outputs: Array, labels: Array, activation: Activation) -> Array:
    """Cross-entropies summed over sequences, (T, K), of outputs (T, K, H, N) with labels (T, N)."""
    picked = np.take_along_axis(outputs, labels[:, None, None, :], axis=2)[:, :, 0]
    if activation == "softmax":
        return np.asarray(-np.log(picked).sum(axis=-1))
    top = outputs.max(axis=2)
    total = np.log(np.exp(outputs - top[:, :, None]).sum(axis=2)) + top
    return np.asarray((total - picked).sum(axis=-1))


def cross_entropy_gradient(outputs: Array, labels: Array, activation: Activation) -> Array:
    """D cross-entropy / d outputs, (T, H, N), of outputs (T, H, N) with labels (T, N)."""
    index = labels[:, None, :]
    if activation == "softmax":
        gradient = np.zeros_like(outputs)
        np.put_along_axis(gradient, index, -1 / np.take_along_axis(outputs, index, axis=1), axis=1)
        return gradient
    gradient = activate(outputs.copy(), "softmax")
    np.put_along_axis(gradient, index, np.take_along_axis(gradient, index, axis=1) - 1, axis=1)
    return gradient


def back(recurrent: Array, states: Array, cotangents: Array, activation: Activation) -> Array:
    """Adjoints of the pre-activations, (T, H, N): back-propagation through time (Werbos 1990).

    ``delta_t = J_t (g_t + R delta_{t+1})`` for states h_t and cotangents g_t = d loss / d h_t of one network.
    """
    adjoints = np.empty_like(states)
    carried = np.zeros_like(states[0])
    for t in reversed(range(len(states))):
        adjoints[t] = jacobian_product(states[t], cotangents[t] + carried, activation)
        carried = recurrent @ adjoints[t]
    return adjoints


def tangent(
    tangents: NamedArrays, parameters: NamedArrays, inputs: Array, states: Array, before: Array, activation: Activation
) -> Array:
    """Forward mode: the tangents of the states, (T, H, N); ``before``, h_0, moves with the tangent of h0."""
    previous = np.concatenate([before[None], states[:-1]])
    moved = {"W": tangents["W"][None], "b": tangents["b"][None]}
    sources = _input_product(moved, inputs)[:, 0] + tangents["R"].T @ previous
    dots = np.empty_like(states)
    dot = np.zeros_like(before) + (tangents["h0"][:, None] if "h0" in tangents else 0)
    for t in range(len(states)):
        dot = jacobian_product(states[t], sources[t] + parameters["R"].T @ dot, activation)
        dots[t] = dot
    return dots
