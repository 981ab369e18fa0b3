"""The networks in TensorFlow."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.tensorflow import cells
from gradaudit.backends.tensorflow.model import TensorflowModel, Tensors, own_trace
from gradaudit.recurrent import Problem
from gradaudit.recurrent.cells import by_layer

__all__ = ["TensorflowNetwork"]

#: What a batched evaluation holds at once, measured: arrays of the size of all outputs of the dense layer, of those of
#: one block of the recurrent layers, and of the losses by step.
_LIVE_OUTPUTS, _LIVE_BLOCKS, _LIVE_LOSSES = 3, 8, 3


class TensorflowNetwork:
    """The network of a problem, over graphs that all networks of its kind share.

    Args:
        problem: spec, weights and data; dtype float32 or float64.
    """

    truncates = False

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._spec = problem.spec
        start = problem.start_state()
        self._start = np.split(start.state, self._spec.n_layers * len(self._spec.components), axis=1)
        self._live = start.live if self._spec.learn_initial_state and start.live.any() else None
        self._steps = _steps(problem)
        self._one, self._many = (self._graph(n_copies=k) for k in (1, None))
        self.model = TensorflowModel(
            lambda parameters: self._losses(self._one, _lead(parameters))[0],
            problem.weights,
            batched=lambda stacked: self._losses(self._many, stacked),
            forward=lambda parameters: self._losses(_for_forward_mode(self._one), _lead(parameters))[0],
            point_bytes=self._point_bytes(),
        )

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step of each sequence adds to the loss, (T, N)."""
        kind = self._kind(n_copies=1)
        each = cells.dense_each(kind) if self._problem.feed_forward else cells.recurrent_each(kind)
        return np.asarray(self._step_losses(each, _lead(parameters))[:, 0])

    def states(self, parameters: NamedArrays) -> Array:
        """(T+1, N, S): the state before the first step, then after each."""
        stacked = _lead(parameters)
        begun = self._initial_states(stacked, reverse=self._problem.side == "reverse")
        first = tf.concat([component for state in begun for component in state], axis=-1)
        after = cells.recurrent_states(self._kind(n_copies=1))(stacked, (begun,), self._steps.given())
        return np.concatenate([np.asarray(first), np.asarray(after)[:, 0]])

    def pulled(self, parameters: NamedArrays, state: Array, pull: Array) -> tuple[Scalar, Gradients, Array]:
        """Forward and backward from a state (N, S), with a pull (N, S) at the last one; see `protocols.Network`."""
        kind = self._problem.dtype
        leaves, first = {n: tf.constant(p) for n, p in parameters.items()}, tf.constant(state.astype(kind))
        n = len(self._spec.components)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*leaves.values(), first])
            given = tf.split(first[None], self._spec.n_layers * n, axis=-1)
            states = tuple(by_layer(self._spec, given))
            steps, last = self._one(_lead(leaves), (states,), self._steps.given())
            loss = tf.reduce_sum(steps)
            pulling = tf.reduce_sum(last[0] * pull.astype(kind))
            total = loss + pulling
        *found, before = tape.gradient(
            total, [*leaves.values(), first], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        gradients = {name: np.asarray(g) for name, g in zip(leaves, found, strict=True)}
        return as_scalar(loss, "pulled()"), gradients, np.asarray(before)

    def _kind(self, *, n_copies: int | None) -> cells.Kind:
        optional = ("mask", "weights", "held", "offset")
        return cells.Kind(
            spec=self._spec,
            dtype=self._problem.dtype,
            n_copies=n_copies,
            n_sequences=self._problem.n_sequences,
            given=frozenset(name for name in optional if getattr(self._steps, name) is not None),
            both_ways=self._problem.both_ways,
            reverse=self._problem.side == "reverse",
        )

    def _graph(self, *, n_copies: int | None) -> Any:
        kind = self._kind(n_copies=n_copies)
        return cells.dense_losses(kind) if self._problem.feed_forward else cells.recurrent_losses(kind)

    def _losses(self, graph: Any, stacked: Tensors) -> tf.Tensor:
        losses = tf.reduce_sum(tf.transpose(self._step_losses(graph, stacked)), axis=1)
        for name in self._idle():
            # plus an empty sum: the gradient of weights that have no part in it is zero, not missing
            losses += tf.reduce_sum(tf.reshape(stacked[name], (tf.shape(losses)[0], -1))[:, :0], axis=1)
        return losses

    def _idle(self) -> set[str]:
        """The weights that have no part in the loss."""
        problem, spec = self._problem, self._spec
        idle: set[str] = set()
        if self._live is None and not problem.feed_forward:
            idle |= {*spec.initial_states(), *(spec.initial_states(reverse=True) if spec.bidirectional else ())}
        if problem.side is not None:
            idle |= {n for n in problem.weights if n.endswith("_reverse") != (problem.side == "reverse")} - {"V", "c"}
        return idle | ({"c"} if problem.side == "reverse" else set())

    def _step_losses(self, graph: Any, stacked: Tensors) -> tf.Tensor:
        if self._problem.feed_forward:
            return graph(stacked, self._steps.given())
        sides = (False, True) if self._problem.both_ways else (self._problem.side == "reverse",)
        states = tuple(self._initial_states(stacked, reverse=reverse) for reverse in sides)
        return graph(stacked, states, self._steps.given())[0]

    def _initial_states(self, stacked: Tensors, *, reverse: bool) -> cells.States:
        """By layer and component, (K, N, H)."""
        shape = stacked["b" if "b" in stacked else next(iter(stacked))].shape[0], *self._start[0].shape
        given = [tf.broadcast_to(component, shape) for component in self._start]
        if self._live is not None:
            names = zip(self._spec.initial_states(reverse=reverse), given, strict=True)
            given = [tf.where(self._live[:, None], stacked[name][:, None], component) for name, component in names]
        return tuple(by_layer(self._spec, given))

    def _point_bytes(self) -> int:
        n_steps, n_sequences, _ = self._steps.inputs.shape
        live, together = (_LIVE_OUTPUTS, n_steps) if self._problem.feed_forward else (_LIVE_BLOCKS, cells.BLOCK)
        outputs = min(n_steps, together) * n_sequences * max(self._spec.n_state, self._spec.n_classes)
        return int((live * outputs + _LIVE_LOSSES * n_steps) * np.dtype(self._problem.dtype).itemsize)


def _steps(problem: Problem) -> cells.Steps:
    inputs = np.pad(problem.inputs(), [(0, 0), (0, 0), (0, 1)], constant_values=1)
    mask, crossing, offset = problem.mask(), problem.crossings(), problem.offsets()
    return cells.Steps(
        tf.constant(inputs),
        tf.constant(problem.labels()),
        tf.constant(problem.loss_weights()),
        None if mask is None else tf.constant(mask[..., None]),
        None if crossing is None else tf.constant(crossing.weights[..., None]),
        None if crossing is None else tf.constant(crossing.held),
        None if offset is None else tf.constant(offset[:, None]),
    )


@cache
def _for_forward_mode(graph: Any) -> Any:
    return own_trace(graph)


def _lead(parameters: NamedArrays | Tensors) -> Tensors:
    return {name: tf.convert_to_tensor(p)[None] for name, p in parameters.items()}
