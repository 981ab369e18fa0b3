"""The dense and the recurrent layers in TensorFlow: graphs over tensors, differentiated by TensorFlow.

Layout: time first, then K parameter copies, sequences, units, (T, K, N, H). What may differ between two networks of one
`Kind` is an argument, so a graph is traced once and serves them all.

Time is walked in blocks, a loop within a loop. TensorFlow differentiates a read from a list into a write to a whole
new list, so one loop over T steps would cost T^2; here no list is longer than a block. Plain graphs were faster than
XLA where it matters: 112 copies of 10,000 steps take 0.5 s against 2.3 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from gradaudit.recurrent import Activation, RecurrentSpec
from gradaudit.recurrent.cells import Given, State, advance, prepared
from gradaudit.recurrent.spec import Layer

__all__ = [
    "BLOCK",
    "Kind",
    "States",
    "Steps",
    "Weights",
    "dense_each",
    "dense_losses",
    "recurrent_each",
    "recurrent_losses",
    "recurrent_states",
]

#: Steps whose input products x @ W are formed at once, and the longest list that the backward pass copies.
BLOCK = 128

#: The parameters, with a leading axis K.
Weights: TypeAlias = dict[str, tf.Tensor]
#: By layer and component, (K, N, H).
States: TypeAlias = tuple[State, ...]
#: What is kept of the losses (B, K, N) of a block of steps.
Reduce: TypeAlias = Callable[[tf.Tensor], tf.Tensor]


class Steps(NamedTuple):
    """The data of consecutive steps; what is None is not there for any of them.

    Attributes:
        inputs: (T, N, D+1), the last feature is 1: it carries the bias.
        labels: (T, N), int64.
        loss_weights: what a cross-entropy weighs, (T, N).
        mask: (T, N, 1), bool.
        weights: of the crossings, (T, N, 1).
        held: (T, N, S).
        offset: of the logits, (T, 1, N, C); inside a graph (T, K, N, C).
    """

    inputs: tf.Tensor
    labels: tf.Tensor
    loss_weights: tf.Tensor
    mask: tf.Tensor | None = None
    weights: tf.Tensor | None = None
    held: tf.Tensor | None = None
    offset: tf.Tensor | None = None

    def between(self, start: tf.Tensor | None, stop: tf.Tensor | None) -> Steps:
        """Steps start+1 to stop."""
        return self.each(lambda tensor: tensor[start:stop])

    def given(self) -> dict[str, tf.Tensor]:
        """What is there, by name: the form in which a graph takes it."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    def each(self, change: Callable[[tf.Tensor], tf.Tensor]) -> Steps:
        """All that is there, changed."""
        return Steps(*(None if tensor is None else change(tensor) for tensor in self))


class Kind(NamedTuple):
    """What a graph is traced for; T is open, and so is K where ``n_copies`` is None. Known sizes save half the time.

    Attributes:
        spec: the layers.
        given: which of the optional fields of `Steps` are given.
        both_ways: two directions of time are run.
        reverse: the one direction that is run is the reverse one.
    """

    spec: RecurrentSpec
    dtype: str
    n_copies: int | None
    n_sequences: int
    given: frozenset[str]
    both_ways: bool
    reverse: bool

    def weights(self, *, feed_forward: bool = False) -> Weights:
        """The specs of the weights."""
        shapes = self.spec.shapes(feed_forward=feed_forward)
        return {name: tf.TensorSpec((self.n_copies, *shape), self.dtype) for name, shape in shapes.items()}

    def states(self) -> tuple[States, ...]:
        """The specs of the states before the first step, for each direction that is run."""
        state = tf.TensorSpec((self.n_copies, self.n_sequences, self.spec.width), self.dtype)
        layers = ((state,) * len(self.spec.components),) * self.spec.n_layers
        return (layers,) * (1 + self.both_ways)

    def steps(self) -> Steps:
        """The specs of the data."""
        n, numbers = self.n_sequences, self.spec.n_state
        specs = {
            "mask": tf.TensorSpec((None, n, 1), tf.bool),
            "weights": tf.TensorSpec((None, n, 1), self.dtype),
            "held": tf.TensorSpec((None, n, numbers), self.dtype),
            "offset": tf.TensorSpec((None, 1, n, self.spec.n_classes), self.dtype),
        }
        return Steps(
            inputs=tf.TensorSpec((None, n, self.spec.n_features + 1), self.dtype),
            labels=tf.TensorSpec((None, n), tf.int64),
            loss_weights=tf.TensorSpec((None, n), self.dtype),
            **{name: specs[name] for name in self.given},
        )


@cache
def dense_losses(kind: Kind) -> Any:
    """A `tf.function` (weights, given steps) -> losses by step (T, K) of a dense layer on all vectors at once."""
    return _graph(partial(_dense_losses, kind, _by_step), kind.weights(feed_forward=True), kind.steps().given())


@cache
def dense_each(kind: Kind) -> Any:
    """As `dense_losses`, losses by step and sequence (T, K, N)."""
    return _graph(partial(_dense_losses, kind, tf.identity), kind.weights(feed_forward=True), kind.steps().given())


@cache
def recurrent_losses(kind: Kind) -> Any:
    """A `tf.function` (weights, states, given steps) -> losses by step (T, K), the last states (K, N, S)."""
    return _graph(partial(_recurrent_losses, kind, _by_step), kind.weights(), kind.states(), kind.steps().given())


@cache
def recurrent_each(kind: Kind) -> Any:
    """As `recurrent_losses`, losses by step and sequence (T, K, N)."""
    return _graph(partial(_recurrent_losses, kind, tf.identity), kind.weights(), kind.states(), kind.steps().given())


@cache
def recurrent_states(kind: Kind) -> Any:
    """A `tf.function` (weights, states, given steps) -> the states (T, K, N, S) after each step."""
    return _graph(partial(_recurrent_states, kind), kind.weights(), kind.states(), kind.steps().given())


def _graph(function: Any, *signature: Any) -> Any:
    return tf.function(function, input_signature=signature, autograph=False)


def _by_step(losses: tf.Tensor) -> tf.Tensor:
    """Losses (B, K, N) summed over sequences, (B, K)."""
    return tf.reduce_sum(losses, axis=-1)


def _dense_losses(kind: Kind, reduce: Reduce, weights: Weights, given: dict[str, tf.Tensor]) -> tf.Tensor:
    steps = Steps(**given)
    outputs = _activate(_product(steps.inputs[:, None], weights["W"], weights["b"]), kind.spec.activation)
    return reduce(_cross_entropy(outputs, steps, kind))


def _recurrent_losses(
    kind: Kind, reduce: Reduce, weights: Weights, states: tuple[States, ...], given: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    steps = Steps(**given)
    if kind.both_ways:
        turned = steps.each(lambda tensor: tf.reverse(tensor, [0]))
        behind, _ = _run(kind, weights, states[1], turned, partial(_logits, kind, weights, reverse=True), reverse=True)
        steps = steps._replace(offset=tf.reverse(behind, [0]))

    def losses(some: Steps, kept: list[State]) -> tf.Tensor:
        outputs = _logits(kind, weights, some, kept, reverse=kind.reverse)
        return reduce(_cross_entropy(outputs if some.offset is None else outputs + some.offset, some, kind))

    found, last = _run(kind, weights, states[0], steps, losses, reverse=kind.reverse)
    return found, tf.concat([component for state in last for component in state], axis=-1)


def _recurrent_states(
    kind: Kind, weights: Weights, states: tuple[States, ...], given: dict[str, tf.Tensor]
) -> tf.Tensor:
    steps = Steps(**given)

    def joined(_: Steps, kept: list[State]) -> tf.Tensor:
        return tf.concat([component for state in kept for component in state], axis=-1)

    return _run(kind, weights, states[0], steps, joined, reverse=kind.reverse)[0]


def _run(
    kind: Kind,
    weights: Weights,
    states: States,
    steps: Steps,
    keep: Callable[[Steps, list[State]], tf.Tensor],
    *,
    reverse: bool,
) -> tuple[tf.Tensor, States]:
    """What ``keep`` makes of each block of steps and its states (B, K, N, H), joined, and the last states."""
    n_blocks = -(-tf.shape(steps.inputs)[0] // BLOCK)
    kept = tf.TensorArray(kind.dtype, n_blocks, infer_shape=False)

    def block(i: tf.Tensor, states: States, kept: tf.TensorArray) -> tuple[tf.Tensor, States, tf.TensorArray]:
        some, after, all_states, below = steps.between(i * BLOCK, (i + 1) * BLOCK), [], [], None
        for index, layer in enumerate(kind.spec.layers(reverse=reverse)):
            reads = some.inputs[:, None] if below is None else _with_one(below)
            source = _product(reads, weights["W" + layer.suffix], weights["b" + layer.suffix])
            walked, last = _walk(kind, layer, index, weights, states[index], some, source)
            after.append(last)
            all_states.append(walked)
            below = walked[0]
        return i + 1, tuple(after), kept.write(i, keep(some, all_states))

    # one block at a time: a second one in flight would only take memory
    _, states, kept = tf.while_loop(
        lambda i, *_: i < n_blocks, block, (0, states, kept), parallel_iterations=1, maximum_iterations=n_blocks
    )
    return kept.concat(), states


def _walk(
    kind: Kind, layer: Layer, index: int, weights: Weights, state: State, steps: Steps, products: tf.Tensor
) -> tuple[State, State]:
    """All states (B, K, N, H) of one layer in one block and the last, from x @ W + b, (B, K, N, G H)."""
    n_steps, spec = tf.shape(products)[0], kind.spec
    own = prepared(spec, layer, _OPS, weights)
    sources = _listed(products, n_steps)
    beside = [None if a is None else _listed(a, n_steps) for a in (steps.mask, steps.weights, steps.held)]
    arrays = tuple(tf.TensorArray(kind.dtype, n_steps, element_shape=c.shape) for c in state)

    def one(t: tf.Tensor, state: State, arrays: State) -> tuple[tf.Tensor, State, State]:
        given = Given(*(None if a is None else a.read(t) for a in beside))
        after = advance(spec, _OPS, own, index, state, sources.read(t), given)
        return t + 1, after, tuple(a.write(t, c) for a, c in zip(arrays, after, strict=True))

    _, state, arrays = tf.while_loop(lambda t, *_: t < n_steps, one, (0, state, arrays), maximum_iterations=n_steps)
    return tuple(a.stack() for a in arrays), state


def _listed(tensor: tf.Tensor, n_steps: tf.Tensor) -> tf.TensorArray:
    return tf.TensorArray(tensor.dtype, n_steps, element_shape=tensor.shape[1:]).unstack(tensor)


def _with_one(states: tf.Tensor) -> tf.Tensor:
    return tf.concat([states, tf.ones_like(states[..., :1])], axis=-1)


def _product(reads: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """X @ W + b, (B, K, N, G H), of (B, K or 1, N, D+1), the last number 1."""
    # in a sum "+ b" the gradient of b would be added up term by term: 1e-5 off after 1e5 terms in float32
    both = tf.concat([weight, bias[:, None]], axis=1)
    if reads.shape[1] == 1:
        return tf.einsum("tnd,kdh->tknh", reads[:, 0], both)
    return tf.einsum("tknd,kdh->tknh", reads, both)


def _logits(kind: Kind, weights: Weights, _: Steps, kept: list[State], *, reverse: bool) -> tf.Tensor:
    """Probabilities or logits (B, K, N, C); of the reverse direction without the bias."""
    top, width = kept[-1][0], kind.spec.width
    if kind.spec.n_hidden is None:
        return top
    if reverse:
        return tf.einsum("tknh,khc->tknc", top, weights["V"][:, width:])
    both = tf.concat([weights["V"][:, :width], weights["c"][:, None]], axis=1)
    return tf.einsum("tknh,khc->tknc", _with_one(top), both)


class TensorflowOps:
    """The `gradaudit.recurrent.cells.Ops` of tensors (K, N, H)."""

    def recurrent(self, weights: tf.Tensor) -> tf.Tensor:
        """As it is, (K, H, G H)."""
        return weights

    def vector(self, weights: tf.Tensor) -> tf.Tensor:
        """(K, H) as (K, 1, H)."""
        return weights[:, None]

    def product(self, weights: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """H @ R, (K, N, G H)."""
        return tf.matmul(state, weights)

    def affine(self, source: tf.Tensor, weights: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """Source + h @ R."""
        return source + tf.matmul(state, weights)

    def split(self, a: tf.Tensor, n: int) -> Sequence[tf.Tensor]:
        """Along the last axis."""
        parts: Sequence[tf.Tensor] = tf.split(a, n, axis=-1)
        return parts

    def activate(self, a: tf.Tensor, activation: Activation) -> tf.Tensor:
        """activation(a)."""
        return _activate(a, activation)

    def units(self, a: tf.Tensor, some: slice) -> tf.Tensor:
        """Along the last axis."""
        return a[..., some]

    def where(self, condition: tf.Tensor, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        """As TensorFlow has it."""
        return tf.where(condition, a, b)

    def is_zero(self, a: tf.Tensor) -> tf.Tensor:
        """Where it is 0."""
        return a == 0


_OPS = TensorflowOps()


def _activate(a: tf.Tensor, activation: Activation) -> tf.Tensor:
    match activation:
        case "tanh":
            return tf.tanh(a)
        case "relu":
            return tf.nn.relu(a)
        case "sigmoid":
            return tf.sigmoid(a)
        case "softmax":
            # tf.nn.softmax in float32 is oneDNN's, which needs 60 us to start: six times the whole step
            powers = tf.exp(a - tf.stop_gradient(tf.reduce_max(a, axis=-1, keepdims=True)))
            return powers / tf.reduce_sum(powers, axis=-1, keepdims=True)
        case "identity":
            return a


def _cross_entropy(outputs: tf.Tensor, steps: Steps, kind: Kind) -> tf.Tensor:
    """Weighted cross-entropies, (B, K, N), of outputs (B, K, N, C)."""
    weights, labels = steps.loss_weights[:, None], steps.labels[:, None]
    if kind.spec.gives_probabilities:
        hot = tf.one_hot(labels, kind.spec.n_classes, dtype=kind.dtype)
        # xlogy: what weighs nothing adds 0 and has gradient 0, also where its cross-entropy is infinite
        return -tf.math.xlogy(weights, tf.reduce_sum(outputs * hot, axis=-1))
    outputs = tf.where(weights[..., None] == 0, tf.ones_like(outputs), outputs)
    labels = tf.broadcast_to(labels, tf.shape(outputs)[:-1])
    entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)
    return weights * entropies
