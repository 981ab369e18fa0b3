"""The dense and the recurrent layer in TensorFlow: graphs over tensors, differentiated by TensorFlow.

Layout: time first, then K parameter copies, sequences, classes, (T, K, N, H). What may differ between two networks of
one `Kind` is an argument, so a graph is traced once and serves them all.

Time is walked in blocks, a loop within a loop. TensorFlow differentiates a read from a list into a write to a whole
new list, so one loop over T steps would cost T^2; here no list is longer than a block. Plain graphs were faster than
XLA where it matters: 112 copies of 10,000 steps take 0.5 s against 2.3 s.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from gradaudit.recurrent import Activation

__all__ = ["BLOCK", "Kind", "Steps", "Weights", "dense_losses", "final_state", "recurrent_losses"]

#: Steps whose input products x @ W are formed at once, and the longest list that the backward pass copies.
BLOCK = 128

#: W (K, D, H), b (K, H) and, if recurrent, R (K, H, H).
Weights: TypeAlias = dict[str, tf.Tensor]


class Steps(NamedTuple):
    """The data of consecutive steps.

    Attributes:
        inputs: (T, N, D+1), the last feature is 1: it carries the bias.
        labels: (T, N), int64.
        loss_weights: what a cross-entropy weighs, (T,).
    """

    inputs: tf.Tensor
    labels: tf.Tensor
    loss_weights: tf.Tensor

    def between(self, start: tf.Tensor | None, stop: tf.Tensor | None) -> Steps:
        """Steps start+1 to stop."""
        return Steps(*(tensor[start:stop] for tensor in self))


class Kind(NamedTuple):
    """What a graph is traced for; T is open, and so is K where ``n_copies`` is None. Known sizes save half the time."""

    activation: Activation
    dtype: str
    n_copies: int | None
    n_sequences: int
    n_features: int
    n_classes: int

    def weights(self, *, recurrent: bool) -> Weights:
        """The specs of the weights."""
        k, d, h = self.n_copies, self.n_features, self.n_classes
        shapes = {"W": (k, d, h), "b": (k, h)} | ({"R": (k, h, h)} if recurrent else {})
        return {name: tf.TensorSpec(shape, self.dtype) for name, shape in shapes.items()}

    def state(self) -> tf.TensorSpec:
        """The spec of a state, (K, N, H)."""
        return tf.TensorSpec((self.n_copies, self.n_sequences, self.n_classes), self.dtype)

    def steps(self) -> Steps:
        """The specs of the data."""
        inputs = tf.TensorSpec((None, self.n_sequences, self.n_features + 1), self.dtype)
        return Steps(inputs, tf.TensorSpec((None, self.n_sequences), tf.int64), tf.TensorSpec((None,), self.dtype))


@cache
def dense_losses(kind: Kind) -> Any:
    """A `tf.function` (weights, steps) -> losses by step, (K, T), of a dense layer on all vectors as one batch."""
    return _graph(partial(_dense_losses, kind), kind.weights(recurrent=False), kind.steps())


@cache
def recurrent_losses(kind: Kind, *, cut: bool) -> Any:
    """A `tf.function` (weights, state (K, N, H), steps, n_cut) -> losses by step, (K, T), of the Elman layer.

    With ``cut`` the backward pass never visits the first ``n_cut`` >= 1 steps: `gradaudit.recurrent.tail`.
    """
    losses = partial(_truncated_losses if cut else _full_losses, kind)
    return _graph(losses, kind.weights(recurrent=True), kind.state(), kind.steps(), tf.TensorSpec((), tf.int32))


@cache
def final_state(kind: Kind) -> Any:
    """A `tf.function` (weights, state (K, N, H), steps) -> the state (K, N, H) after at least one step."""
    return _graph(partial(_final_state, kind), kind.weights(recurrent=True), kind.state(), kind.steps())


def _graph(function: Any, *signature: Any) -> Any:
    return tf.function(function, input_signature=signature, autograph=False)


def _dense_losses(kind: Kind, weights: Weights, steps: Steps) -> tf.Tensor:
    outputs = _activate(_input_product(weights, steps.inputs), kind.activation)
    return tf.transpose(_cross_entropy(outputs, steps, kind))


def _full_losses(kind: Kind, weights: Weights, state: tf.Tensor, steps: Steps, n_cut: tf.Tensor) -> tf.Tensor:
    del n_cut  # there for the truncated twin of this function
    return tf.transpose(_run(kind, weights, state, steps)[0])


def _truncated_losses(kind: Kind, weights: Weights, state: tf.Tensor, steps: Steps, n_cut: tf.Tensor) -> tf.Tensor:
    # stop what leaves the first loop, not what enters it: TensorFlow would differentiate it all, then drop the result
    early, last = map(tf.stop_gradient, _run(kind, weights, state, steps.between(None, n_cut)))
    # not a plain assignment: the gradient of the first state is then 0, but not missing
    state = tf.where(n_cut > 0, last, state)
    late, _ = _run(kind, weights, state, steps.between(n_cut, None))
    return tf.transpose(tf.concat([early, late], axis=0))


def _final_state(kind: Kind, weights: Weights, state: tf.Tensor, steps: Steps) -> tf.Tensor:
    return _run(kind, weights, state, steps)[1]


def _run(kind: Kind, weights: Weights, state: tf.Tensor, steps: Steps) -> tuple[tf.Tensor, tf.Tensor]:
    """The losses by step, (T, K), and the last state."""
    n_blocks = -(-tf.shape(steps.inputs)[0] // BLOCK)
    losses = tf.TensorArray(kind.dtype, n_blocks, infer_shape=False, element_shape=(None, kind.n_copies))

    def block(i: tf.Tensor, state: tf.Tensor, losses: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        some = steps.between(i * BLOCK, (i + 1) * BLOCK)
        states, state = _walk(kind, weights["R"], state, _input_product(weights, some.inputs))
        return i + 1, state, losses.write(i, _cross_entropy(states, some, kind))

    # one block at a time: a second one in flight would only take memory
    _, state, losses = tf.while_loop(
        lambda i, *_: i < n_blocks, block, (0, state, losses), parallel_iterations=1, maximum_iterations=n_blocks
    )
    return losses.concat(), state


def _walk(kind: Kind, recurrent: tf.Tensor, state: tf.Tensor, products: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """All states (B, K, N, H) of one block and the last, from x @ W + b, (B, K, N, H)."""
    n_steps = tf.shape(products)[0]
    sources = tf.TensorArray(kind.dtype, n_steps, element_shape=state.shape).unstack(products)
    states = tf.TensorArray(kind.dtype, n_steps, element_shape=state.shape)

    def step(t: tf.Tensor, state: tf.Tensor, states: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        state = _activate(sources.read(t) + tf.matmul(state, recurrent), kind.activation)
        return t + 1, state, states.write(t, state)

    _, state, states = tf.while_loop(lambda t, *_: t < n_steps, step, (0, state, states), maximum_iterations=n_steps)
    return states.stack(), state


def _input_product(weights: Weights, inputs: tf.Tensor) -> tf.Tensor:
    # in a sum "+ b" the gradient of b would be added up term by term: 1e-5 off after 1e5 terms in float32
    return tf.einsum("tnd,kdh->tknh", inputs, tf.concat([weights["W"], weights["b"][:, None]], axis=1))


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
    """Weighted cross-entropies summed over sequences, (B, K), of outputs (B, K, N, H)."""
    weights, labels = steps.loss_weights[:, None, None], steps.labels[:, None]
    if kind.activation == "softmax":
        hot = tf.one_hot(labels, kind.n_classes, dtype=kind.dtype)
        # xlogy: a step that weighs nothing adds 0 and has gradient 0, also where its cross-entropy is infinite
        return -tf.reduce_sum(tf.math.xlogy(weights, tf.reduce_sum(outputs * hot, axis=-1)), axis=-1)
    labels = tf.broadcast_to(labels, tf.shape(outputs)[:-1])
    entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)
    return tf.reduce_sum(weights * entropies, axis=-1)
