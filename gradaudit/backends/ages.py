"""The gradients of all windows, one after the other, on any backend: each step runs alone, all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.one_step import Build
from gradaudit.backends.truncated import Run, runs
from gradaudit.recurrent import Problem, single_steps

__all__ = ["windows"]


def windows(problem: Problem, build: Build, parameters: NamedArrays) -> Iterator[dict[str, Array]]:
    """The gradients of ``window(1)``, ``window(2)``, ..., ``window(T)``, in float64.

    Window(k + 1) is window(k) and the pairs of steps k apart. What the losses k steps later pull at the states goes
    back by one step from age to age, for all T states at once, so that an age costs T single steps forward and
    backward, none of which waits for another, and O(T) memory.
    """
    sides = [_Side(run, build, parameters) for run in runs(problem, build, parameters)]
    total = {name: np.zeros(p.shape) for name, p in parameters.items()}
    for age in range(problem.n_steps):
        for side in sides:
            if age == 1:
                side.without_losses()
            for name, gradient in side.older().items():
                total[name] = total[name] + gradient
        yield dict(total)


class _Side:
    """One direction of a network, its steps side by side."""

    def __init__(self, run: Run, build: Build, parameters: NamedArrays) -> None:
        self._build, self._parameters, self._problem = build, parameters, run.problem
        self._parts = list(single_steps(run.problem, run.states))
        self._networks = [build(part) for part in self._parts]
        #: (T, N, S): what pulls at the state after each step; the losses of the steps themselves are in the networks.
        self._pull = np.zeros_like(run.states[1:])

    def older(self) -> dict[str, Array]:
        """The gradient of the pairs one step further apart than those of the last call; at first of the same step."""
        total = {name: np.zeros(p.shape) for name, p in self._parameters.items()}
        before: list[Array] = []
        for network, part in zip(self._networks, self._parts, strict=True):
            state, n_before = part.start_state().state, len(before)
            own = self._pull[n_before : n_before + part.n_sequences // self._pull.shape[1]]
            # what only fills the last batch is pulled by nothing
            pull = np.zeros_like(state).reshape(-1, *own.shape[1:])
            pull[: len(own)] = own
            _, gradients, out = network.pulled(self._parameters, state, pull.reshape(state.shape))
            before.extend(out.reshape(pull.shape)[: len(own)])
            for name, gradient in gradients.items():
                assert gradient is not None  # a network's gradient lacks no weight, see `gradaudit.protocols.Network`
                total[name] = total[name] + gradient
        if names := self._problem.spec.initial_states(reverse=self._problem.side == "reverse"):
            first = np.where(self._problem.start_state().live[:, None], before[0], 0).sum(axis=0)
            total |= dict(zip(names, np.split(first, len(names)), strict=True))
        self._pull = np.stack([*before[1:], np.zeros_like(before[0])])
        return total

    def without_losses(self) -> None:
        """From now on the steps hand back what pulls at them, and no losses of their own."""
        parts = [replace(part, weighting=np.zeros_like(part.loss_weights())) for part in self._parts]
        self._networks = [self._build(part) for part in parts]
