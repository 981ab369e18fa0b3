"""The dense and the recurrent layers in JAX, pure functions of one network, or of K small ones side by side.

Layout: time first, sequences innermost, (T, H, N): the softmax over few classes is vectorised on a CPU. Time is walked
by a scan over blocks of steps: memory does not grow with T where only the loss is wanted, and float32 sums over steps,
forward and backward, are sums of short sums.

K networks of the same sequences, `side_by_side`, are one of K * N sequences with weights of their own. Under vmap,
which puts the copies first, the innermost loops are as short as N. It is for the plain Elman layer with few units; all
else, and its matrix products, need vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradaudit.recurrent import Activation, RecurrentSpec
from gradaudit.recurrent.cells import Given, State, advance, prepared
from gradaudit.recurrent.spec import Layer

__all__ = [
    "FEW_UNITS",
    "Reduce",
    "States",
    "Steps",
    "Weights",
    "columns",
    "dense",
    "entropies",
    "in_pairs",
    "keep",
    "outputs",
    "read",
    "side_by_side",
    "total",
    "walk",
    "working_bytes",
]

Weights: TypeAlias = dict[str, jax.Array]
#: By layer and component, (H, N).
States: TypeAlias = tuple[State, ...]
#: What is kept of the losses, (B, N) or (B, K, N), of a block of steps: `keep` or `total`.
Reduce: TypeAlias = Callable[[jax.Array], jax.Array]

#: Steps whose input products x @ W are formed at once: large enough to amortise, small enough to stay in cache.
_BLOCK = 256
#: Arrays of the size of one block of outputs that are alive at once.
_LIVE_BLOCKS = 4
#: Up to so many units h @ R is written out.
FEW_UNITS = 8
_ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda a: a,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "softmax": partial(jax.nn.softmax, axis=-2),
}


class Steps(NamedTuple):
    """Consecutive time steps; what is None is not there for any of them.

    Attributes:
        inputs: (T, N, D).
        labels: (T, N), int32.
        loss_weights: what a cross-entropy weighs, (T, N).
        mask: (T, N), bool.
        weights: of the crossings, (T, N).
        held: (T, S, N).
        offset: of the logits, (T, C, N).
    """

    inputs: jax.Array
    labels: jax.Array
    loss_weights: jax.Array
    mask: jax.Array | None = None
    weights: jax.Array | None = None
    held: jax.Array | None = None
    offset: jax.Array | None = None

    def part(self, steps: slice) -> Steps:
        """Some of the steps."""
        return self._each(lambda array: array[steps])

    def blocks(self, size: int) -> Steps:
        """(T, ...) as (T / size, size, ...)."""
        return self._each(lambda array: array.reshape(-1, size, *array.shape[1:]))

    def _each(self, change: Callable[[jax.Array], jax.Array]) -> Steps:
        return Steps(*(None if array is None else change(array) for array in self))


def side_by_side(stacked: Weights, n_sequences: int) -> Weights:
    """The weights (K, ...) of K networks with one of their sequences in each column, (..., K * N); W stays stacked."""
    wide = {n: jnp.repeat(jnp.moveaxis(w, 0, -1), n_sequences, axis=-1) for n, w in stacked.items()}
    return wide | {"W": stacked["W"]}


def columns(weights: jax.Array, n_axes: int) -> jax.Array:
    """Weights with columns: one for all sequences, unless each has its own."""
    return weights if weights.ndim > n_axes else weights[..., None]


def _copies(weights: Weights) -> tuple[int, ...]:
    """(K,) where K networks stand side by side, otherwise ()."""
    return weights["W"].shape[:-2] if "W" in weights else ()


def _tiled(array: jax.Array, copies: tuple[int, ...]) -> jax.Array:
    """(..., N) as (..., K * N)."""
    return jnp.tile(array, copies[0]) if copies else array


def keep(losses: jax.Array) -> jax.Array:
    """All the losses as they are."""
    return losses


def total(losses: jax.Array) -> jax.Array:
    """Their sum, (1,) or (1, K)."""
    return in_pairs(losses.sum(axis=-1))


def in_pairs(losses: jax.Array) -> jax.Array:
    """The sum of (n,) or (n, K), (1,) or (1, K), added in pairs: the rounding error grows with log n.

    XLA adds one after the other on a CPU.
    """
    while (n := losses.shape[0]) > 1:
        half = n // 2
        losses = jnp.concatenate([losses[:half] + losses[half : 2 * half], losses[2 * half :]])
    return losses


def walk(block: Callable[[Any, Steps], tuple[Any, jax.Array]], carry: Any, steps: Steps) -> tuple[Any, jax.Array]:
    """The last carry, and what ``block`` (carry, some steps) -> (carry, kept (n, ...)) keeps of all blocks, joined."""
    n_steps = steps.inputs.shape[0]
    size = _block_size(n_steps)
    kept = []
    if n_first := n_steps % size:
        carry, first = block(carry, steps.part(slice(n_first)))
        kept.append(first)
    if n_steps > n_first:
        carry, rest = lax.scan(block, carry, steps.part(slice(n_first, None)).blocks(size))
        kept.append(rest.reshape(-1, *rest.shape[2:]))
    return carry, jnp.concatenate(kept)


def _block_size(n_steps: int) -> int:
    """The longest that leaves no remainder, unless it is short: a remainder compiles the block a second time."""
    even = max((size for size in range(1, _BLOCK + 1) if n_steps % size == 0), default=_BLOCK)
    return even if even >= _BLOCK // 4 else _BLOCK


def working_bytes(spec: RecurrentSpec, n_steps: int, n_sequences: int, dtype: str) -> int:
    """Memory that one network takes where only the loss is wanted."""
    numbers = max(spec.n_state, spec.n_classes)
    return _LIVE_BLOCKS * min(n_steps, _BLOCK) * n_sequences * numbers * np.dtype(dtype).itemsize


class JaxOps:
    """The `gradaudit.recurrent.cells.Ops` of arrays (H, N)."""

    def recurrent(self, weights: jax.Array) -> jax.Array:
        """As it is."""
        return weights

    def vector(self, weights: jax.Array) -> jax.Array:
        """(H,) as (H, 1)."""
        return weights[..., None]

    def product(self, weights: jax.Array, state: jax.Array) -> jax.Array:
        """R^T h, (G H, N)."""
        if weights.shape[0] > FEW_UNITS:
            # accelerators would otherwise round float32 factors to fewer digits than the audit resolves
            return jnp.matmul(weights.T, state, precision=lax.Precision.HIGHEST)
        # small products, many side by side, are faster as sums: they become one loop with what follows
        return (columns(weights, 2) * state[:, None, :]).sum(axis=0)

    def affine(self, source: jax.Array, weights: jax.Array, state: jax.Array) -> jax.Array:
        """Source + R^T h."""
        return source + self.product(weights, state)

    def split(self, a: jax.Array, n: int) -> Sequence[jax.Array]:
        """Along axis -2."""
        parts: Sequence[jax.Array] = jnp.split(a, n, axis=-2)
        return parts

    def activate(self, a: jax.Array, activation: Activation) -> jax.Array:
        """activation(a)."""
        return _ACTIVATIONS[activation](a)

    def units(self, a: jax.Array, some: slice) -> jax.Array:
        """Along axis -2."""
        return a[..., some, :]

    def where(self, condition: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        """As JAX has it."""
        return jnp.where(condition, a, b)

    def is_zero(self, a: jax.Array) -> jax.Array:
        """Where it is 0."""
        return a == 0


_OPS = JaxOps()


def outputs(
    spec: RecurrentSpec, weights: Weights, states: States, steps: Steps, *, reverse: bool
) -> tuple[States, list[State]]:
    """The states after some steps, and those after each of them, by layer and component, (B, H, N)."""
    after, kept, below = [], [], None
    for index, layer in enumerate(spec.layers(reverse=reverse)):
        sources = _sources(weights, layer, steps.inputs, below)
        state, walked = _layer(spec, layer, index, weights, states[index], steps, sources)
        after.append(state)
        kept.append(walked)
        below = walked[0]
    return tuple(after), kept


def _sources(weights: Weights, layer: Layer, inputs: jax.Array, below: jax.Array | None) -> jax.Array:
    """X @ W + b, (B, G H, N)."""
    weight, bias = weights["W" + layer.suffix], columns(weights["b" + layer.suffix], 1)
    if below is None:
        products = jnp.einsum("tnd,...dh->th...n", inputs, weight, precision=lax.Precision.HIGHEST)
        return products.reshape(*products.shape[:2], -1) + bias
    return jnp.einsum("tdn,dh->thn", below, weight, precision=lax.Precision.HIGHEST) + bias


def _layer(
    spec: RecurrentSpec,
    layer: Layer,
    index: int,
    weights: Weights,
    state: State,
    steps: Steps,
    sources: jax.Array,
) -> tuple[State, State]:
    own, copies = prepared(spec, layer, _OPS, weights), _copies(weights)
    given = Given(*(None if a is None else _tiled(a, copies) for a in (steps.mask, steps.weights, steps.held)))

    def one(state: State, at: tuple[jax.Array, Given]) -> tuple[State, State]:
        source, given = at
        after = advance(spec, _OPS, own, index, state, source, given)
        return after, after

    result: tuple[State, State] = lax.scan(one, state, (sources, given))
    return result


def dense(spec: RecurrentSpec, weights: Weights, steps: Steps) -> jax.Array:
    """activation(x @ W + b), (B, C, N)."""
    layer = Layer(suffix="", n_inputs=spec.n_features)
    return _ACTIVATIONS[spec.activation](_sources(weights, layer, steps.inputs, None))


def read(spec: RecurrentSpec, weights: Weights, top: jax.Array, *, reverse: bool) -> jax.Array:
    """Probabilities or logits (B, C, N) of the top layer's states (B, H, N); of the reverse direction without bias."""
    if spec.n_hidden is None:
        return top
    rows = weights["V"][spec.width :] if reverse else weights["V"][: spec.width]
    logits = jnp.einsum("thn,hc->tcn", top, rows, precision=lax.Precision.HIGHEST)
    return logits if reverse else logits + weights["c"][:, None]


def entropies(spec: RecurrentSpec, weights: Weights, outputs_: jax.Array, steps: Steps) -> jax.Array:
    """What each step of each sequence adds to the loss, (B, N) or (B, K, N), from outputs (B, C, N) or (B, C, K N)."""
    copies = _copies(weights)
    labels, loss_weights = _tiled(steps.labels, copies), _tiled(steps.loss_weights, copies)
    # what weighs nothing adds exactly nothing, not even where its cross-entropy is infinite: 0 * inf is NaN
    outputs_ = jnp.where(loss_weights[:, None] == 0, 1, outputs_)
    # compared, not indexed: the derivative of indexing is a scatter, slow on a CPU
    chosen = labels[:, None, :] == jnp.arange(outputs_.shape[1], dtype=labels.dtype)[:, None]
    picked = jnp.where(chosen, outputs_, 0).sum(axis=1)
    each = -jnp.log(picked) if spec.gives_probabilities else jax.nn.logsumexp(outputs_, axis=1) - picked
    return (loss_weights * each).reshape(-1, *copies, steps.labels.shape[1])
