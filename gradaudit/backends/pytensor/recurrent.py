"""The networks of the seed case in PyTensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor
from pytensor import tensor as pt

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.pytensor import cells
from gradaudit.backends.pytensor.model import Evaluation, PytensorModel
from gradaudit.backends.pytensor.modes import LIGHT
from gradaudit.recurrent import Problem

__all__ = ["PytensorNetwork"]

#: Arrays of the size of all states that a batched evaluation holds at once, measured.
_LIVE_OUTPUTS = 5


class PytensorNetwork:
    """The network of a problem: `pytensor.scan` over all steps, its ``truncate_gradient`` for `tail`.

    Args:
        problem: spec, weights, data and truncation; dtype float32 or float64.

    Raises:
        UnsupportedTruncationError: the truncation is neither none nor tail.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        # held steps are not run again, so nothing is left to cut
        self._first, cut = (0, problem.n_cut) if problem.held is None else (problem.n_cut, 0)
        self._truncate_gradient = problem.n_steps - cut if cut else -1
        self._inputs, self._labels, self._loss_weights = (
            pytensor.shared(array[self._first :], shape=array[self._first :].shape)
            for array in (problem.inputs(), problem.labels(), problem.loss_weights())
        )
        outputs = problem.n_steps * problem.n_sequences * problem.spec.n_classes
        self.model = PytensorModel(
            lambda parameters: self._losses(_lead(parameters))[0],
            problem.weights,
            batched=self._losses,
            point_bytes=_LIVE_OUTPUTS * outputs * np.dtype(problem.dtype).itemsize,
            mode=LIGHT,
        )
        self._step_losses_of = Evaluation(lambda p: self._step_losses(_lead(p))[0], problem.weights)
        self._states_of = Evaluation(lambda p: self._states(_lead(p))[:, 0], problem.weights)

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step adds to the loss, (T,)."""
        return self._step_losses_of(parameters)

    def state_after(self, parameters: NamedArrays, n_steps: int) -> Array:
        """The hidden state (N, H) after ``n_steps`` steps."""
        return np.asarray(self._states_of(parameters)[n_steps])

    def _losses(self, stacked: cells.Tensors) -> Any:
        return self._step_losses(stacked).sum(axis=1)

    def _step_losses(self, stacked: cells.Tensors) -> Any:
        activation = self._problem.spec.activation
        outputs = cells.dense(stacked, self._inputs, activation) if self._problem.feed_forward else self._run(stacked)
        live = cells.step_losses(outputs, self._labels, self._loss_weights, activation)
        if self._problem.held is None:
            return live
        before = self._problem.held.step_losses.astype(self._problem.dtype)
        return pt.concatenate([pt.broadcast_to(before, (live.shape[0], len(before))), live], axis=1)

    def _states(self, stacked: cells.Tensors) -> Any:
        """The initial state and all states, (T+1, K, N, H)."""
        return pt.concatenate([self._initial_state(stacked)[None], self._run(stacked)])

    def _run(self, stacked: cells.Tensors) -> Any:
        state, activation = self._initial_state(stacked), self._problem.spec.activation
        return cells.run(stacked, self._inputs, state, activation, truncate_gradient=self._truncate_gradient)

    def _initial_state(self, stacked: cells.Tensors) -> Any:
        n_copies, n_hidden = stacked["b"].shape
        shape = (n_copies, self._problem.n_sequences, n_hidden)
        if self._problem.held is None:
            state = stacked["h0"][:, None] if "h0" in stacked else np.zeros((1, 1, 1), self._problem.dtype)
            return pt.broadcast_to(state, shape)
        state = self._problem.held.state.astype(self._problem.dtype)
        if "h0" in stacked:
            # not a plain constant: the gradient of h0 is then 0, but not missing
            state = pt.switch(np.array(True), state, stacked["h0"][:, None])  # noqa: FBT003  # the condition
        return pt.broadcast_to(state, shape)


def _lead(parameters: cells.Tensors) -> cells.Tensors:
    return {name: p[None] for name, p in parameters.items()}
