"""A truncated gradient as full gradients: the segments of a truncation as the sequences of other problems.

The gradient of every truncation that keeps or drops pairs is the sum of the full gradients of runs of steps a+1 to c
from held states h_a, of which the losses m to c count (`Truncation.segments`). Runs of one length are the sequences of
one batch, so no backend needs a loop of its own for any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradaudit.arrays import Array
from gradaudit.recurrent.problem import Crossing, Problem, Start
from gradaudit.recurrent.spec import SequenceData
from gradaudit.recurrent.truncation import Truncation, none

__all__ = ["one_way", "segment_problems", "segment_runs", "spans", "uncounted_steps"]

#: Numbers of inputs and states in one batch of runs: memory stays bounded, a batch is long enough.
_MOST_NUMBERS = 2**21

Rows = NDArray[np.int64]


def one_way(problem: Problem, *, reverse: bool, offset: Array) -> Problem:
    """One direction of a bidirectional problem, in its order of time.

    ``offset`` (T, N, C) is what the other direction adds to the logits, in the order of time of the data.
    """
    if not reverse:
        return replace(problem, side="forward", offset=offset)
    data = problem.data
    mask = None if data.mask is None else data.mask[:, ::-1]
    turned = replace(data, features=data.features[:, ::-1], labels=data.labels[:, ::-1], mask=mask)
    return replace(problem, side="reverse", data=turned, weighting=problem.loss_weights()[::-1], offset=offset[::-1])


def spans(problem: Problem, length: int) -> list[Problem]:
    """A problem as consecutive ones of ``length`` steps, the last one shorter; each weighs what it did in the whole."""
    data, weights, offset = problem.data, problem.loss_weights(), problem.offset
    parts = [slice(start, start + length) for start in range(0, problem.n_steps, length)]
    return [
        replace(
            problem,
            data=replace(
                data,
                features=data.features[:, part],
                labels=data.labels[:, part],
                mask=None if data.mask is None else data.mask[:, part],
            ),
            weighting=weights[part],
            offset=None if offset is None else offset[part],
        )
        for part in parts
    ]


def segment_problems(problem: Problem, truncation: Truncation, states: Array) -> Iterator[Problem]:
    """The problems whose gradients add up to the truncated one at the parameters of these states.

    Their losses add up to the loss there, but for those of no segment, see `uncounted_steps`.

    Args:
        problem: what is truncated; of a bidirectional network one side.
        truncation: cuts something over its steps.
        states: (T+1, N, S), h_0..h_T; held but for h_0.
    """
    if truncation.kind == "randomised":
        gates = truncation.gates(problem.n_steps, problem.n_sequences)
        assert gates is not None  # randomised has them
        yield replace(problem, crossing=Crossing(gates.state, states[:-1]), truncation=none())
        return
    for _, runs in segment_runs(problem, truncation.segments(problem.n_steps), states):
        yield runs
    if problem.spec.n_hidden is not None and len(left := uncounted_steps(truncation, problem.n_steps)):
        yield _Source(problem, states).readout(left)


def segment_runs(problem: Problem, rows: Rows, states: Array) -> Iterator[tuple[Rows, Problem]]:
    """The runs of some segments (a, m, c), those that are the sequences of one problem together: R of N sequences.

    A segment without a loss has no run. Rows (a, 1, 0) fill up the last batch, of no loss.
    """
    source, lengths = _Source(problem, states), rows[:, 2] - rows[:, 0]
    # a run never goes on behind its last loss: an activation without bound could overflow there, and 0 * inf is NaN
    for length in np.unique(lengths):
        yield from source.slabs(source.with_loss(rows[lengths == length]), int(length))


def uncounted_steps(truncation: Truncation, n_steps: int) -> NDArray[np.int64]:
    """The steps t = 1..T whose losses are in no segment; a readout learns from them all the same."""
    if truncation.kind == "randomised":
        return np.zeros(0, np.int64)
    edges = np.zeros(n_steps + 1, int)
    _, first, last = truncation.segments(n_steps).T
    np.add.at(edges, first - 1, 1)
    np.add.at(edges, last, -1)
    return np.flatnonzero(np.cumsum(edges)[:-1] == 0) + 1


class _Source:
    """Where the numbers of the runs come from, all with time first."""

    def __init__(self, problem: Problem, states: Array) -> None:
        self._problem, self._states = problem, states
        self._inputs, self._labels, self._weights = problem.inputs(), problem.labels(), problem.loss_weights()
        self._mask, self._offset = problem.mask(), problem.offset
        self._live = problem.start_state().live

    def with_loss(self, rows: Rows) -> Rows:
        """The segments that have a loss."""
        before = np.concatenate([[0], np.cumsum(self._weights.any(axis=1))])
        return rows[before[rows[:, 2]] > before[rows[:, 1] - 1]]

    def slabs(self, rows: Rows, length: int) -> Iterator[tuple[Rows, Problem]]:
        """The runs of these segments, so many at once as memory allows; all of one shape."""
        if not len(rows):
            return
        numbers = length * self._problem.n_sequences * (self._problem.spec.n_features + self._problem.spec.n_state)
        n_slabs = -(-len(rows) * numbers // _MOST_NUMBERS)
        size = -(-len(rows) // max(1, n_slabs))
        for start in range(0, len(rows), size):
            slab = rows[start : start + size]
            # filled up with runs without a loss: one shape, one compilation
            empty = np.repeat(slab[-1:] * [1, 0, 0] + [0, 1, 0], size - len(slab), axis=0)
            filled = np.concatenate([slab, empty])
            yield filled, self._runs(filled, length)

    def _runs(self, rows: Rows, length: int) -> Problem:
        starts, first, last = rows.T
        steps = starts + np.arange(length)[:, None]
        counted = (steps >= first - 1) & (steps < last)
        start = Start(_joined(self._states[starts], 0), _joined((starts == 0)[:, None] & self._live, 0))
        weighting = np.where(counted[:, :, None], self._weights[steps], 0)
        mask = None if self._mask is None else self._mask[steps]
        return self._of(steps, start, _joined(weighting, 1), None if mask is None else _joined(mask, 1))

    def readout(self, left: NDArray[np.int64]) -> Problem:
        """The losses of the steps ``left`` from held states: one masked step each, at which the state stays."""
        steps = left[None] - 1
        start = Start(_joined(self._states[left], 0), np.zeros(left.size * self._problem.n_sequences, bool))
        mask = np.zeros((1, len(start.live)), bool)
        return self._of(steps, start, _joined(self._weights[steps], 1), mask)

    def _of(self, steps: NDArray[np.int64], start: Start, weighting: Array, mask: Array | None) -> Problem:
        data = SequenceData(
            features=_joined(self._inputs[steps], 1).swapaxes(0, 1),
            labels=_joined(self._labels[steps], 1).T,
            mask=None if mask is None else mask.T,
        )
        offset = None if self._offset is None else _joined(self._offset[steps], 1)
        whole = replace(self._problem, truncation=none())
        return replace(whole, data=data, weighting=weighting, start=start, offset=offset)


def _joined(array: Array, axis: int) -> Array:
    return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
