"""Single steps of a network on any backend, any number of them side by side: the backward pass without its loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from gradaudit.arrays import Array, Gradients, NamedArrays
from gradaudit.protocols import Network
from gradaudit.recurrent import Crossing, Problem, SequenceData, Start, none

__all__ = ["Build", "OneStep", "Steps"]

#: A backend's network for a problem.
Build: TypeAlias = Callable[[Problem], Network]
Steps: TypeAlias = NDArray[np.int64]


@final
class OneStep:
    """Steps t = 0..T-1 of a problem that runs one way, J of them as the sequences of one batch, from given states.

    Args:
        problem: T steps of N sequences.
        build: the backend's network for a problem.
        parameters: where.
    """

    def __init__(self, problem: Problem, build: Build, parameters: NamedArrays) -> None:
        self._problem, self._build, self._parameters = problem, build, parameters
        self._last: tuple[tuple[bytes, bool], Network] | None = None
        self._inputs, self._labels, self._weights = problem.inputs(), problem.labels(), problem.loss_weights()
        self._mask, self._offset, self._crossing = problem.mask(), problem.offsets(), problem.crossings()

    def losses(self, at: Steps, after: Array) -> tuple[Gradients, Array]:
        """The gradient of the losses of these steps (J,), and what they pull at the states after them, (J, N, S)."""
        # masked, so that the state stays as it is
        mask = np.zeros((1, after.shape[0] * after.shape[1]), bool)
        return self._pulled(at, after, np.zeros_like(after), self._weights[at], mask, None, counted=True)

    def back(self, at: Steps, before: Array, pulls: Array) -> tuple[Gradients, Array]:
        """From what is pulled at the states after the steps: the gradient, and what that pulls at those before.

        Args:
            at: the steps, (J,); without their losses.
            before: the states before them, (J, N, S).
            pulls: (J, N, S).
        """
        mask, crossing = (None if self._mask is None else self._mask[at].reshape(1, -1)), None
        if self._crossing is not None:
            weights, held = (array[at].reshape(1, -1, *array.shape[2:]) for array in self._crossing)
            crossing = Crossing(weights, held)
        return self._pulled(at, before, pulls, np.zeros_like(self._weights[at]), mask, crossing, counted=False)

    def _pulled(
        self,
        at: Steps,
        states: Array,
        pulls: Array,
        weights: Array,
        mask: Array | None,
        crossing: Crossing | None,
        *,
        counted: bool,
    ) -> tuple[Gradients, Array]:
        n = weights.size
        data = SequenceData(
            features=self._inputs[at].reshape(n, 1, -1),
            labels=self._labels[at].reshape(n, 1),
            mask=None if mask is None else mask.T,
        )
        step = replace(
            self._problem,
            data=data,
            truncation=none(),
            weighting=weights.reshape(1, n),
            start=Start(states.reshape(n, -1), np.zeros(n, bool)),
            crossing=crossing,
            offset=None if self._offset is None else self._offset[at].reshape(1, n, -1),
            checkpoint=None,
        )
        # a network is given its states: the same steps again need no other one, where a backend compiles each
        asked = at.tobytes(), counted
        if self._last is None or self._last[0] != asked:
            self._last = asked, self._build(step)
        _, gradients, before = self._last[1].pulled(self._parameters, states.reshape(n, -1), pulls.reshape(n, -1))
        return gradients, before.reshape(states.shape)
