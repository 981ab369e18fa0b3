"""How far the loss of one step reaches back to the state after another, on any backend: backward, and by moved states.

Both sides are other problems for the backend's own network. Backward, the segments of a truncation are walked one step
at a time, and what each loss pulls at the states is handed from step to step. Forward, the network is run again from
moved states, each run a sequence of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.one_step import Build, OneStep, Steps
from gradaudit.recurrent import Crossing, Problem, SequenceData, Start, none, segment_runs

__all__ = ["Passed", "moved", "passed"]

#: Numbers of inputs and states in one batch of moved runs.
_MOST_NUMBERS = 2**22


class Passed(NamedTuple):
    """What the backward pass passes from the loss of step s to the state after step u, along a move of that state.

    Attributes:
        value: (n, n), the scalar products, at [s, u].
        size: (n, n), what they would be if nothing cancelled: the root of the sum of the squares of their terms.
    """

    value: Array
    size: Array


def passed(problem: Problem, build: Build, parameters: NamedArrays, steps: Steps, moves: Array) -> Passed:
    """The truncated backward pass, loss by loss and state by state: exactly 0 where the truncation has cut.

    Each segment of the truncation is walked back one step at a time, for all its losses side by side. That is as many
    calls of `gradaudit.protocols.Network.pulled` as the longest segment has steps, of about T sequences for each of
    the network's; of len(steps), where a single segment has them all.

    Args:
        problem: a recurrent network that runs one way, truncated.
        build: the backend's network for a problem.
        parameters: where.
        steps: s and u, (n,), ascending, from 1 to T.
        moves: of the state after each of the steps, (n, N, S).
    """
    plain = replace(problem, truncation=none(), checkpoint=None)
    states = build(plain).states(parameters)
    found = Passed(*np.zeros((2, len(steps), len(steps))))
    if problem.truncation.kind == "randomised":
        gates = problem.truncation.gates(problem.n_steps, problem.n_sequences)
        assert gates is not None  # randomised has them
        runs = replace(plain, crossing=Crossing(gates.state, states[:-1]))
        _Walk(runs, build, parameters, np.array([[0, 1, problem.n_steps]]), steps, moves).into(found)
        return found
    rows = problem.truncation.segments(problem.n_steps)
    wanted = np.array([((m <= steps) & (steps <= c)).any() for _, m, c in rows])
    for some, runs in segment_runs(plain, rows[wanted], states):
        _Walk(runs, build, parameters, some, steps, moves).into(found)
    return found


class _Walk:
    """The runs of some segments, backward."""

    def __init__(
        self, runs: Problem, build: Build, parameters: NamedArrays, rows: Steps, steps: Steps, moves: Array
    ) -> None:
        self._runs, self._one = runs, OneStep(runs, build, parameters)
        self._rows, self._steps, self._moves = rows, steps, moves
        self._states = build(runs).states(parameters)

    def into(self, found: Passed) -> None:
        """Add what is passed in these runs."""
        starts, first, last = self._rows.T
        ends = starts + np.arange(1, self._runs.n_steps + 1)[:, None]
        asked = np.isin(ends, self._steps)
        counted = asked & (first <= ends) & (ends <= last)
        losses = np.flatnonzero(counted.any(axis=1) & self._runs.loss_weights().any(axis=1))
        if not len(losses):
            return
        _, direct = self._one.losses(losses, self._states[losses + 1])
        pulls = np.zeros_like(direct)
        lowest = np.flatnonzero(asked.any(axis=1))[0]
        for at in range(losses[-1], lowest - 1, -1):
            pulls[losses == at] = direct[losses == at]
            for run in np.flatnonzero(asked[at]):
                own = counted[losses, run] & (losses >= at)
                self._add(found, ends[losses[own], run], int(ends[at, run]), self._of(int(run), pulls[own]))
            if at > lowest:
                every = np.full(len(pulls), at)
                # a copy: it is written to, and TensorFlow hands out what cannot be
                pulls = np.array(self._one.back(every, self._states[every], pulls)[1])

    def _of(self, run: int, pulls: Array) -> Array:
        """Those of one run, (J, N, S)."""
        n = len(self._moves[0])
        return pulls[:, run * n : (run + 1) * n]

    def _add(self, found: Passed, losses: Steps, state: int, pulls: Array) -> None:
        rows, column = np.searchsorted(self._steps, losses), np.searchsorted(self._steps, state)
        terms = pulls * self._moves[column]
        found.value[rows, column] += terms.sum(axis=(1, 2))
        found.size[rows, column] += np.sqrt(np.square(terms).sum(axis=(1, 2)))


def moved(problem: Problem, build: Build, parameters: NamedArrays, losses: Steps, states: Steps, moves: Array) -> Array:
    """The losses with the state after one step moved: (K, n, m, N), at [k, s, u] what each sequence adds at step s.

    Every move is one more run of the network, from that step on; all runs are the sequences of a batch, or of a few.

    Args:
        problem: a recurrent network that runs one way.
        build: the backend's network for a problem.
        parameters: where.
        losses: s, (n,), ascending, from 1 to T.
        states: u, (m,), ascending, from 1 to T.
        moves: K moves of the state after each of the steps u, (K, m, N, S).
    """
    plain = replace(problem, truncation=none(), checkpoint=None)
    base = build(plain).states(parameters)
    n_moves, n, n_sequences, n_state = moves.shape
    first, last = int(min(losses[0], states[0])), int(losses[-1])
    each = (last - first + 1) * n_moves * n_sequences * (problem.spec.n_features + n_state)
    size = min(n, max(1, _MOST_NUMBERS // each))
    found = np.zeros((n_moves, len(losses), n, n_sequences))
    for columns in _equal(n, size):
        starts = base[states[columns]] + moves[:, columns]
        runs = _moved_runs(plain, slice(first - 1, last), states[columns], starts)
        values = build(runs).step_losses(parameters)[losses - first]
        found[:, :, columns] = values.reshape(len(losses), n_moves, size, n_sequences).swapaxes(0, 1)
    return found


def _equal(n: int, size: int) -> Iterator[NDArray[np.int64]]:
    """0..n-1 in parts of one size, so that one program does: the last one overlaps."""
    for start in range(0, n, size):
        yield np.arange(size) + min(start, n - size)


def _moved_runs(problem: Problem, part: slice, after: Steps, states: Array) -> Problem:
    """Some steps from states (K, m, N, S), which are those after steps (m,)."""
    copies = states.shape[0] * states.shape[1]

    def repeated(array: Array) -> Array:
        return np.concatenate([array[part]] * copies, axis=1)

    # up to the step after which it is moved the state stays as it is
    goes = np.arange(part.start + 1, part.stop + 1)[:, None] > np.repeat(np.tile(after, len(states)), states.shape[2])
    mask = problem.mask()
    data = SequenceData(
        features=repeated(problem.inputs()).swapaxes(0, 1),
        labels=repeated(problem.labels()).T,
        mask=(goes if mask is None else goes & repeated(mask)).T,
    )
    started = states.reshape(-1, states.shape[3])
    return replace(
        problem,
        data=data,
        weighting=repeated(problem.loss_weights()),
        start=Start(started, np.zeros(len(started), bool)),
        offset=None if problem.offset is None else repeated(problem.offset),
    )
