"""The truncated gradient of a network on any backend, and the objective of which it is the ordinary derivative."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.backends.doubled import doubled
from gradaudit.backends.one_step import Build
from gradaudit.direction import Point
from gradaudit.protocols import Network
from gradaudit.recurrent import Problem, Truncation, one_way, segment_problems, uncounted_steps

__all__ = ["FrozenModel", "Run", "frozen", "gradient", "runs", "tangent"]

#: Batches of runs that are kept from one evaluation to the next; more are made anew, or memory would grow with T k.
_MOST_KEPT = 8


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One direction of a network and the states (T+1, N, S) that are held."""

    problem: Problem
    states: Array


def runs(problem: Problem, build: Build, parameters: NamedArrays) -> list[Run]:
    """The directions of a network, with their states at these parameters."""
    if not problem.both_ways:
        return [Run(problem, build(problem).states(parameters))]
    shape = problem.n_steps, problem.n_sequences, problem.spec.n_classes
    sides = [one_way(problem, reverse=reverse, offset=np.zeros(shape)) for reverse in (False, True)]
    forward, backward = (build(side).states(parameters) for side in sides)
    width, readout = problem.spec.width, parameters["V"]
    # the bias stands in one of the two only: its gradient is to be counted once
    ahead = forward[1:, :, :width] @ readout[:width] + parameters["c"]
    behind = (backward[1:, :, :width] @ readout[width:])[::-1]
    return [
        Run(one_way(problem, reverse=False, offset=behind), forward),
        Run(one_way(problem, reverse=True, offset=ahead), backward),
    ]


def _networks(runs: Sequence[Run], truncation: Truncation, build: Build) -> Iterator[Network]:
    for run in runs:
        yield from map(build, segment_problems(run.problem, truncation, run.states))


def gradient(problem: Problem, build: Build, parameters: NamedArrays) -> Gradients:
    """The truncated gradient: of the runs of all segments from the states at these very parameters.

    Of a long window it is computed without them, see `gradaudit.backends.doubled`.
    """

    def parts() -> Iterator[Gradients]:
        for run in runs(problem, build, parameters):
            if (found := doubled(run.problem, problem.truncation, build, parameters, run.states)) is not None:
                yield found
                continue
            for network in _networks([run], problem.truncation, build):
                yield network.model.value_and_grad(parameters)[1]

    return _summed(parts())


def tangent(problem: Problem, build: Build, parameters: NamedArrays, tangents: NamedArrays) -> float:
    """The truncated directional derivative by forward mode."""
    networks = _networks(runs(problem, build, parameters), problem.truncation, build)
    return sum(network.model.jvp(parameters, tangents) for network in networks)


def _summed(parts: Iterator[Gradients]) -> dict[str, Array]:
    total: dict[str, Array] = {}
    for gradients in parts:
        for name, part in gradients.items():
            assert part is not None  # a network's gradient lacks no weight, see `gradaudit.protocols.Network`
            total[name] = part if name not in total else total[name] + part
    return total


def frozen(problem: Problem, build: Build) -> FrozenModel:
    """The objective whose ordinary derivative at the base point is the truncated gradient."""
    steps = build(problem).step_losses(problem.weights).sum(axis=1)
    left = uncounted_steps(problem.truncation, problem.n_steps)
    # with a readout, the losses of no segment have runs of their own, of no step
    constants = steps[:0] if problem.spec.n_hidden is not None else steps[left - 1]
    if problem.both_ways:
        # each direction has the whole loss
        constants = -steps
    return FrozenModel(problem, build, runs(problem, build, problem.weights), constants)


@final
class FrozenModel:
    """The loss with the cut states held; its ordinary derivative is the truncated gradient.

    Args:
        problem: the recurrent network, truncated.
        build: the backend's network for a problem.
        runs: its directions, with the held states.
        constants: what is added to the losses of the runs.
    """

    def __init__(self, problem: Problem, build: Build, runs: Sequence[Run], constants: Array) -> None:
        self._problem = problem
        self._build = build
        self._runs = runs
        self._constants = constants
        self._kept: list[Network] | None = None

    def _networks(self) -> Iterator[Network]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Network] = []
        for network in _networks(self._runs, self._problem.truncation, self._build):
            if len(kept) <= _MOST_KEPT:
                kept.append(network)
            yield network
        if len(kept) <= _MOST_KEPT:
            self._kept = kept

    def parameters(self) -> NamedArrays:
        """The weights, as those of the network."""
        return self._problem.weights

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The frozen objective; at the base point the loss."""
        return self._sum([network.model.loss(parameters) for network in self._networks()])

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The frozen objective and its ordinary gradient, at the base point the truncated one."""
        losses: list[Scalar] = []

        def parts() -> Iterator[Gradients]:
            for network in self._networks():
                loss, gradients = network.model.value_and_grad(parameters)
                losses.append(loss)
                yield gradients

        gradients = _summed(parts())
        return self._sum(losses), gradients

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """Its directional derivative by forward mode."""
        return sum(network.model.jvp(parameters, tangents) for network in self._networks())

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        return next(self._networks()).model.point_bytes

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,)."""
        losses = sum(network.model.along(points).astype(np.float64) for network in self._networks())
        return np.asarray(self._constants.sum(dtype=np.float64) + losses).astype(self._problem.dtype)

    def terms(self, parameters: NamedArrays) -> Array:
        """What the steps of all runs add: summed in float64 they lose fewer digits than their float32 sum."""
        losses = (network.step_losses(parameters).ravel() for network in self._networks())
        return np.concatenate([self._constants, *losses])

    def twin(self) -> FrozenModel | None:
        """The same objective in float64, the same states held."""
        if self._problem.dtype == "float64":
            return None
        weights = {name: weight.astype("float64") for name, weight in self._problem.weights.items()}
        runs = [Run(replace(run.problem, weights=weights), run.states) for run in self._runs]
        return FrozenModel(replace(self._problem, weights=weights), self._build, runs, self._constants)

    def preserved(self) -> AbstractContextManager[None]:
        """The framework's state, as its backend preserves it."""
        return self._build(self._problem).model.preserved()

    def environment(self) -> Mapping[str, str]:
        """The framework and its version."""
        return self._build(self._problem).model.environment()

    def _sum(self, losses: Sequence[Scalar]) -> Scalar:
        exact = self._constants.sum(dtype=np.float64) + sum(map(np.float64, losses))
        total: Scalar = np.dtype(self._problem.dtype).type(exact)
        return total
