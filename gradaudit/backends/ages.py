"""The gradients of all windows, one after the other, on any backend: each step runs alone, all of them at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.one_step import Build, OneStep
from gradaudit.backends.truncated import Run, runs
from gradaudit.recurrent import Problem

__all__ = ["windows"]


def windows(problem: Problem, build: Build, parameters: NamedArrays) -> Iterator[dict[str, Array]]:
    """The gradients of ``window(1)``, ``window(2)``, ..., ``window(T)``, in float64.

    Window(k + 1) is window(k) and the pairs of steps k apart. What the losses k steps later pull at the states goes
    back by one step from age to age, for all T states at once, so that an age costs T single steps forward and
    backward, none of which waits for another, and O(T) memory.
    """
    sides = [_Side(run, build, parameters) for run in runs(problem, build, parameters)]
    total = {name: np.zeros(p.shape) for name, p in parameters.items()}
    for _ in range(problem.n_steps):
        for side in sides:
            for name, gradient in side.older().items():
                total[name] = total[name] + gradient
        yield dict(total)


class _Side:
    """One direction of a network, its steps side by side."""

    def __init__(self, run: Run, build: Build, parameters: NamedArrays) -> None:
        self._problem, self._states = run.problem, run.states
        self._one, self._steps = OneStep(run.problem, build, parameters), np.arange(run.problem.n_steps)
        #: (T, N, S): what is pulled at the state after each step; None: the losses of the steps themselves do.
        self._pulls: Array | None = None

    def older(self) -> dict[str, Array]:
        """The gradient of the pairs one step further apart than those of the last call; at first of the same step."""
        direct: dict[str, Array] = {}
        if self._pulls is None:
            found, self._pulls = self._one.losses(self._steps, self._states[1:])
            direct = {name: np.asarray(g) for name, g in found.items()}
        gradients, before = self._one.back(self._steps, self._states[:-1], self._pulls)
        total = {name: np.asarray(g) + direct.get(name, 0.0) for name, g in gradients.items()}
        if names := self._problem.spec.initial_states(reverse=self._problem.side == "reverse"):
            first = np.where(self._problem.start_state().live[:, None], before[0], 0).sum(axis=0)
            total |= dict(zip(names, np.split(first, len(names)), strict=True))
        self._pulls = np.concatenate([before[1:], np.zeros_like(before[:1])])
        return total
