"""The dense and the recurrent layer in JAX, pure functions of one network, or of K small ones side by side.

Layout: time first, sequences innermost, (T, H, N): the softmax over few classes is vectorised on a CPU. Time is walked
by a scan over blocks of steps: memory does not grow with T where only the loss is wanted, and float32 sums over steps,
forward and backward, are sums of short sums.

K networks of the same sequences, `side_by_side`, are one of K * N sequences with weights of their own. Under vmap,
which puts the copies first, the innermost loops are as short as N, and a batch takes half as long again. Networks of
many classes need vmap all the same, for their matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradaudit.recurrent import Activation

__all__ = [
    "FEW_CLASSES",
    "Layer",
    "Reduce",
    "Steps",
    "Weights",
    "keep",
    "side_by_side",
    "total",
    "walk",
    "working_bytes",
]

Weights: TypeAlias = dict[str, jax.Array]
#: What is kept of the losses, (B,) or (B, K), of a block of steps: `keep` or `total`.
Reduce: TypeAlias = Callable[[jax.Array], jax.Array]

#: Steps whose input products x @ W are formed at once: large enough to amortise, small enough to stay in cache.
_BLOCK = 256
#: Arrays of the size of one block of outputs that are alive at once.
_LIVE_BLOCKS = 4
#: Up to so many classes h @ R is written out.
FEW_CLASSES = 8
_ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda a: a,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softmax": partial(jax.nn.softmax, axis=-2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What the compiled programs depend on besides shapes; equal layers share them."""

    activation: Activation
    feed_forward: bool


class Steps(NamedTuple):
    """Consecutive time steps: inputs (T, N, D), labels (T, N) int32, and what a cross-entropy weighs, (T,)."""

    inputs: jax.Array
    labels: jax.Array
    loss_weights: jax.Array

    def part(self, steps: slice) -> Steps:
        """Some of the steps."""
        return Steps(*(array[steps] for array in self))


def side_by_side(stacked: Weights, n_sequences: int) -> Weights:
    """The weights (K, ...) of K networks with one of their sequences in each column, (..., K * N); W stays stacked."""
    columns = {n: jnp.repeat(jnp.moveaxis(w, 0, -1), n_sequences, axis=-1) for n, w in stacked.items()}
    return columns | {"W": stacked["W"]}


def _columns(weights: jax.Array, n_axes: int) -> jax.Array:
    """Weights with columns: one for all sequences, unless each has its own."""
    return weights if weights.ndim > n_axes else weights[..., None]


def keep(losses: jax.Array) -> jax.Array:
    """All the losses, (n,) or (n, K), as they are."""
    return losses


def total(losses: jax.Array) -> jax.Array:
    """Their sum, (1,) or (1, K), added in pairs: the rounding error grows with log n.

    XLA adds one after the other on a CPU.
    """
    while (n := losses.shape[0]) > 1:
        half = n // 2
        losses = jnp.concatenate([losses[:half] + losses[half : 2 * half], losses[2 * half :]])
    return losses


def walk(layer: Layer, weights: Weights, state: jax.Array, steps: Steps, reduce: Reduce) -> tuple[jax.Array, jax.Array]:
    """Run the steps from a state (N, H): the state after them, and what ``reduce`` keeps of each block, joined.

    With the weights of K networks `side_by_side` the state is (K * N, H), and the losses are (n, K).
    """
    state = state.T
    copies = weights["W"].shape[:-2]

    def block(state: jax.Array, steps: Steps) -> tuple[jax.Array, jax.Array]:
        outputs = _outputs(layer, weights, state, steps.inputs)
        return outputs[-1], reduce(_losses(layer, outputs, steps, copies))

    n_steps = steps.inputs.shape[0]
    size = _block_size(n_steps)
    kept = [jnp.zeros((0, *copies), state.dtype)]
    if n_first := n_steps % size:
        state, losses = block(state, steps.part(slice(n_first)))
        kept.append(losses)
    if n_steps > n_first:
        rest = steps.part(slice(n_first, None))
        blocks = Steps(*(array.reshape(-1, size, *array.shape[1:]) for array in rest))
        state, losses = lax.scan(block, state, blocks)
        kept.append(losses.reshape(-1, *copies))
    return state.T, jnp.concatenate(kept)


def _block_size(n_steps: int) -> int:
    """The longest that leaves no remainder, unless it is short: a remainder compiles the block a second time."""
    even = max((size for size in range(1, _BLOCK + 1) if n_steps % size == 0), default=_BLOCK)
    return even if even >= _BLOCK // 4 else _BLOCK


def working_bytes(n_steps: int, n_sequences: int, n_classes: int, dtype: str) -> int:
    """Memory that one network takes in `walk` where only the loss is wanted."""
    return _LIVE_BLOCKS * min(n_steps, _BLOCK) * n_sequences * n_classes * np.dtype(dtype).itemsize


def _outputs(layer: Layer, weights: Weights, state: jax.Array, inputs: jax.Array) -> jax.Array:
    """(B, H, N): activation(x @ W + b) or, recurrent, activation(x @ W + h @ R + b), from a state (H, N)."""
    activate = _ACTIVATIONS[layer.activation]
    # accelerators would otherwise round float32 factors to fewer digits than the audit resolves
    products = jnp.einsum("tnd,...dh->th...n", inputs, weights["W"], precision=lax.Precision.HIGHEST)
    sources = products.reshape(*products.shape[:2], -1) + _columns(weights["b"], 1)
    if layer.feed_forward:
        return activate(sources)

    def step(state: jax.Array, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = activate(source + _recurrent(weights["R"], state))
        return state, state

    return lax.scan(step, state, sources)[1]


def _recurrent(weights: jax.Array, state: jax.Array) -> jax.Array:
    """R^T h for a state (H, N)."""
    if weights.shape[0] > FEW_CLASSES:
        return jnp.matmul(weights.T, state, precision=lax.Precision.HIGHEST)
    # small products, many side by side, are faster as sums: they become one loop with what follows
    return (_columns(weights, 2) * state[:, None, :]).sum(axis=0)


def _losses(layer: Layer, outputs: jax.Array, steps: Steps, copies: tuple[int, ...]) -> jax.Array:
    """What each step adds to the loss, (B,) or (B, K), from outputs (B, H, N) or (B, H, K * N)."""
    # a step without a loss adds exactly nothing, not even where its cross-entropy is infinite: 0 * inf is NaN
    outputs = jnp.where(steps.loss_weights[:, None, None] == 0, 1, outputs)
    # compared, not indexed: the derivative of indexing is a scatter, slow on a CPU
    labels = jnp.tile(steps.labels, math.prod(copies))
    chosen = labels[:, None, :] == jnp.arange(outputs.shape[1], dtype=steps.labels.dtype)[:, None]
    picked = jnp.where(chosen, outputs, 0).sum(axis=1)
    entropies = -jnp.log(picked) if layer.activation == "softmax" else jax.nn.logsumexp(outputs, axis=1) - picked
    sums = entropies.reshape(-1, *copies, steps.labels.shape[1]).sum(axis=-1)
    return (steps.loss_weights * sums.T).T
