"""The dense and the recurrent layers in NumPy, forward.

Layout: time first, then K parameter copies, units, sequences, (T, K, H, N). With sequences innermost, reductions over
few classes run over long rows. Time is walked in blocks, so memory does not grow with T where only the losses are
wanted. All of it computes in complex numbers, too: forward mode is a complex step (Squire & Trapp 1998).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.recurrent import Activation, RecurrentSpec
from gradaudit.recurrent.cells import Given, State, advance, prepared

__all__ = [
    "BLOCK",
    "OPS",
    "NumpyOps",
    "Steps",
    "activate",
    "cross_entropy",
    "cross_entropy_gradient",
    "dense",
    "run",
]

#: Steps whose input products x @ W are formed at once: large enough to amortise, small enough to stay in cache.
BLOCK = 256
#: Below this many units a BLAS call per parameter copy costs more than the product itself.
_SMALL = 8


class Steps(NamedTuple):
    """What is given at each step.

    Attributes:
        inputs: (T, N, D).
        mask: (T, 1, N), or None.
        weights: of the crossings, (T, 1, N), or None.
        held: (T, S, N), or None.
    """

    inputs: Array
    mask: Array | None = None
    weights: Array | None = None
    held: Array | None = None

    def part(self, steps: slice) -> Steps:
        """Some of the steps."""
        return Steps(*(None if a is None else a[steps] for a in self))  # type: ignore[arg-type]

    def at(self, t: int) -> Given:
        """All but the inputs at one step."""
        return Given(*(None if a is None else a[t] for a in self[1:]))


def activate(a: Array, activation: Activation) -> Array:
    """H = activation(a), in place; softmax over the units, axis -2."""
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


class NumpyOps:
    """The `gradaudit.recurrent.cells.Ops` of arrays (K, H, N)."""

    def recurrent(self, weights: Array) -> Array:
        """R (K, H, G H) as (K, G H, H)."""
        return np.ascontiguousarray(weights.swapaxes(-1, -2))

    def vector(self, weights: Array) -> Array:
        """(K, H) as (K, H, 1)."""
        return weights[..., None]

    def product(self, weights: Array, state: Array) -> Array:
        """(K, G H, N)."""
        if weights.shape[-1] <= _SMALL:
            return np.asarray(np.einsum("kgh,khn->kgn", weights, state))
        return np.asarray(weights @ state)

    def affine(self, source: Array, weights: Array, state: Array) -> Array:
        """In place."""
        source += self.product(weights, state)
        return source

    def split(self, a: Array, n: int) -> list[Array]:
        """Views."""
        return np.split(a, n, axis=-2)

    def activate(self, a: Array, activation: Activation) -> Array:
        """In place."""
        return activate(a, activation)

    def units(self, a: Array, some: slice) -> Array:
        """Along axis -2."""
        return a[..., some, :]

    def where(self, condition: Array, a: Array, b: Array) -> Array:
        """As NumPy has it."""
        return np.where(condition, a, b)

    def is_zero(self, a: Array) -> Array:
        """Where it is 0."""
        return np.asarray(a == 0)


OPS = NumpyOps()


def dense(parameters: NamedArrays, inputs: Array, activation: Activation) -> Iterator[tuple[slice, Array]]:
    """activation(x @ W + b) of inputs (T, N, D) with parameters (K, ...), as blocks (B, K, H, N) of one batch."""
    for steps in _blocks(len(inputs)):
        yield steps, activate(_input_product(parameters["W"], parameters["b"], inputs[steps]), activation)


def run(
    spec: RecurrentSpec, parameters: NamedArrays, steps: Steps, states: list[State], *, reverse: bool = False
) -> Iterator[tuple[slice, list[list[Array]]]]:
    """All states of consecutive blocks of steps: [layer][component] (B, K, H, N), from ``states`` before the first."""
    layers = [(layer, prepared(spec, layer, OPS, parameters)) for layer in spec.layers(reverse=reverse)]
    for part in _blocks(len(steps.inputs)):
        some, below, kept = steps.part(part), None, []
        for index, (layer, weights) in enumerate(layers):
            weight, bias = parameters["W" + layer.suffix], parameters["b" + layer.suffix]
            sources = (
                _input_product(weight, bias, some.inputs) if below is None else _product_above(weight, bias, below)
            )
            state = states[index]
            walked = [np.empty((len(sources), *c.shape), sources.dtype) for c in state]
            for t in range(len(sources)):
                state = advance(spec, OPS, weights, index, state, sources[t], some.at(t))
                for component, all_of_it in zip(state, walked, strict=True):
                    all_of_it[t] = component
            states[index] = state
            below = walked[0]
            kept.append(walked)
        yield part, kept


def _blocks(n_steps: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, n_steps)) for start in range(0, n_steps, BLOCK))


def _input_product(weight: Array, bias: Array, inputs: Array) -> Array:
    """X @ W + b, (T, K, G H, N), of inputs (T, N, D)."""
    (n_copies, n_features, n_units), (n_steps, n_sequences, _) = weight.shape, inputs.shape
    flat = weight.swapaxes(1, 2).reshape(-1, n_features) @ inputs.reshape(-1, n_features).T
    product = flat.reshape(n_copies, n_units, n_steps, n_sequences) + bias[:, :, None, None]
    return np.ascontiguousarray(product.transpose(2, 0, 1, 3))


def _product_above(weight: Array, bias: Array, below: Array) -> Array:
    """H @ W + b, (T, K, G H, N), of the states (T, K, H, N) of the layer below."""
    return np.asarray(weight.swapaxes(1, 2) @ below + bias[:, :, None])


def cross_entropy(outputs: Array, labels: Array, *, probabilities: bool) -> Array:
    """Cross-entropies, (T, K, N), of probabilities or logits (T, K, C, N) with labels (T, N)."""
    picked = np.take_along_axis(outputs, labels[:, None, None, :], axis=2)[:, :, 0]
    if probabilities:
        return np.asarray(-np.log(picked))
    top = outputs.max(axis=2)
    total = np.log(np.exp(outputs - top[:, :, None]).sum(axis=2)) + top
    return np.asarray(total - picked)


def cross_entropy_gradient(outputs: Array, labels: Array, *, probabilities: bool) -> Array:
    """D cross-entropy / d outputs, (T, C, N), of outputs (T, C, N) with labels (T, N)."""
    index = labels[:, None, :]
    if probabilities:
        gradient = np.zeros_like(outputs)
        np.put_along_axis(gradient, index, -1 / np.take_along_axis(outputs, index, axis=1), axis=1)
        return gradient
    gradient = activate(outputs.copy(), "softmax")
    np.put_along_axis(gradient, index, np.take_along_axis(gradient, index, axis=1) - 1, axis=1)
    return gradient
