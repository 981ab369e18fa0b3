"""The networks of the seed case in TensorFlow."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.tensorflow import cells
from gradaudit.backends.tensorflow.model import TensorflowModel, Tensors, own_trace
from gradaudit.recurrent import Problem

__all__ = ["TensorflowNetwork"]

#: What a batched evaluation holds at once, measured: arrays of the size of all outputs of the dense layer, of those of
#: one block of the recurrent layer, and of the losses by step.
_LIVE_OUTPUTS, _LIVE_BLOCKS, _LIVE_LOSSES = 3, 8, 3


class TensorflowNetwork:
    """The network of a problem, over graphs that all networks of its kind share.

    Args:
        problem: spec, weights, data and truncation; dtype float32 or float64.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._held = problem.held
        # held steps are not run again, so nothing is left to cut
        first, n_cut = (0, problem.n_cut) if problem.held is None else (problem.n_cut, 0)
        inputs = np.pad(problem.inputs(), [(0, 0), (0, 0), (0, 1)], constant_values=1)
        data = (inputs, problem.labels(), problem.loss_weights())
        self._steps = cells.Steps(*(tf.constant(array[first:]) for array in data))
        self._n_cut = tf.constant(n_cut)
        self._one, self._many = (self._graph(n_copies=k, cut=n_cut > 0) for k in (1, None))
        self.model = TensorflowModel(
            lambda parameters: self._losses(self._one, _lead(parameters))[0],
            problem.weights,
            batched=lambda stacked: self._losses(self._many, stacked),
            forward=lambda parameters: self._losses(_for_forward_mode(self._one), _lead(parameters))[0],
            point_bytes=self._point_bytes(),
        )

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step adds to the loss, (T,)."""
        return np.asarray(self._step_losses(self._one, _lead(parameters))[0])

    def state_after(self, parameters: NamedArrays, n_steps: int) -> Array:
        """The hidden state (N, H) after ``n_steps`` steps."""
        stacked = _lead(parameters)
        state = self._initial_state(stacked)
        if n_steps > 0:
            graph = cells.final_state(self._kind(n_copies=1))
            state = graph(_weights(stacked), state, self._steps.between(None, n_steps))
        return np.asarray(state[0])

    def _kind(self, *, n_copies: int | None) -> cells.Kind:
        spec = self._problem.spec
        sizes = (n_copies, self._problem.n_sequences, spec.n_features, spec.n_classes)
        return cells.Kind(spec.activation, self._problem.dtype, *sizes)

    def _graph(self, *, n_copies: int | None, cut: bool) -> Any:
        kind = self._kind(n_copies=n_copies)
        return cells.dense_losses(kind) if self._problem.feed_forward else cells.recurrent_losses(kind, cut=cut)

    def _losses(self, graph: Any, stacked: Tensors) -> tf.Tensor:
        return tf.reduce_sum(self._step_losses(graph, stacked), axis=1)

    def _step_losses(self, graph: Any, stacked: Tensors) -> tf.Tensor:
        if self._problem.feed_forward:
            return graph(stacked, self._steps)
        live = graph(_weights(stacked), self._initial_state(stacked), self._steps, self._n_cut)
        if self._held is None:
            return live
        before = self._held.step_losses.astype(self._problem.dtype)
        return tf.concat([tf.broadcast_to(before, (live.shape[0], len(before))), live], axis=1)

    def _initial_state(self, stacked: Tensors) -> tf.Tensor:
        state = stacked["h0"][:, None] if "h0" in stacked else tf.zeros((1, 1, 1), self._problem.dtype)
        if self._held is not None:
            # not a plain assignment: the gradient of h0 is then 0, but not missing
            state = tf.where(self._problem.n_cut > 0, self._held.state.astype(self._problem.dtype), state)
        n_copies, n_hidden = stacked["b"].shape
        return tf.broadcast_to(state, (n_copies, self._problem.n_sequences, n_hidden))

    def _point_bytes(self) -> int:
        n_steps, n_sequences, _ = self._steps.inputs.shape
        live, together = (_LIVE_OUTPUTS, n_steps) if self._problem.feed_forward else (_LIVE_BLOCKS, cells.BLOCK)
        outputs = min(n_steps, together) * n_sequences * self._problem.spec.n_classes
        return int((live * outputs + _LIVE_LOSSES * n_steps) * np.dtype(self._problem.dtype).itemsize)


@cache
def _for_forward_mode(graph: Any) -> Any:
    return own_trace(graph)


def _weights(stacked: Tensors) -> cells.Weights:
    return {name: stacked[name] for name in ("W", "R", "b")}


def _lead(parameters: NamedArrays | Tensors) -> Tensors:
    return {name: tf.convert_to_tensor(p)[None] for name, p in parameters.items()}
