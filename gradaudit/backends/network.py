"""The recurrent or dense network of any backend, as a model with all its capabilities.

A backend supplies a `gradaudit.protocols.Network` that is differentiated whole; what is the same everywhere is here,
once: twin, truncation, frozen objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.backends.ages import windows
from gradaudit.backends.checkpointed import checkpointed
from gradaudit.backends.one_step import Build
from gradaudit.backends.reach import moved, passed
from gradaudit.backends.truncated import FrozenModel, frozen, gradient, tangent
from gradaudit.direction import Point
from gradaudit.errors import OptionError
from gradaudit.protocols import Network
from gradaudit.recurrent import Problem, RecurrentSpec, SequenceData, Truncation, none

__all__ = ["NetworkBackend", "NetworkModel"]


@final
class NetworkModel:
    """A `gradaudit.protocols.Model` with every optional capability, over one backend's network.

    Args:
        problem: what to compute.
        build: the backend's network for a problem.
    """

    def __init__(self, problem: Problem, build: Build) -> None:
        self._problem = problem
        self._build = build
        self._network = build(problem)
        self._model = self._network.model

    def parameters(self) -> NamedArrays:
        """The weights: W (D, H) and b (H,) of a dense layer, or those of the recurrent spec."""
        return self._problem.weights

    def loss(self, parameters: NamedArrays) -> Scalar:
        """Mean categorical cross-entropy over all steps that there are, or over the last."""
        return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its gradient as truncated."""
        if not self._made:
            if self._problem.checkpoint is not None:
                return checkpointed(self._problem, self._build, parameters, self._problem.checkpoint)
            return self._model.value_and_grad(parameters)
        # the loss is that of the plain pass, to the last bit
        return self._model.loss(parameters), gradient(self._problem, self._build, parameters)

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """Forward mode, of the gradient as truncated."""
        if not self._made:
            return self._model.jvp(parameters, tangents)
        return tangent(self._problem, self._build, parameters, tangents)

    @property
    def _cuts(self) -> bool:
        return not self._problem.feed_forward and self._problem.truncation.cuts(self._problem.n_steps)

    @property
    def _made(self) -> bool:
        """Whether the truncated gradient is made of others, rather than the network's own."""
        return self._cuts and not self._network.truncates

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        return self._model.point_bytes

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,)."""
        return self._model.along(points)

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step adds to the loss, (T,)."""
        return np.asarray(self._network.step_losses(parameters).sum(axis=1))

    def terms(self, parameters: NamedArrays) -> Array:
        """The losses by step and sequence: summed in float64 they lose fewer digits than their float32 sum."""
        return self._network.step_losses(parameters)

    @property
    def truncation(self) -> Truncation:
        """The truncation as declared."""
        return self._problem.truncation

    def with_truncation(self, truncation: Truncation) -> NetworkModel:
        """The same loss with another truncation."""
        return NetworkModel(replace(self._problem, truncation=truncation), self._build)

    def windows(self, parameters: NamedArrays) -> Iterator[Gradients]:
        """The gradients of ``window(1)`` to ``window(T)``, in float64, one after the other; see `backends.ages`.

        Raises:
            OptionError: the network has no state.
        """
        if self._problem.feed_forward:
            msg = "a dense layer has no steps that a window could reach over"
            raise OptionError(msg, where="windows()", hint="a recurrent model")
        yield from windows(self._problem, self._build, parameters)

    def checkpointed(self, n_steps: int) -> NetworkModel:
        """The same model, whose untruncated gradient keeps the states of every ``n_steps`` steps only.

        Memory of T / n_steps states and of the backward pass of n_steps, for half as many steps again
        (Griewank & Walther 2000); about sqrt(T) is the least.

        Raises:
            OptionError: n_steps < 1; the network runs both ways, or has no state.
        """
        return NetworkModel(replace(self._problem, checkpoint=n_steps), self._build)

    def states_after(self, steps: Array) -> Array:
        """The states after these steps, (n, N, S).

        Raises:
            OptionError: the network runs both ways, or has no state.
        """
        if self._problem.both_ways or self._problem.feed_forward:
            msg = "a network that runs both ways, or has no state"
            hint = "a recurrent network that runs one way: the two ways have a state each, and losses after and before"
            raise OptionError(msg, where="states_after()", hint=hint)
        return self._network.states(self._problem.weights)[steps]

    def passed(self, steps: Array, moves: Array) -> tuple[Array, Array]:
        """What the truncated backward pass passes from losses to states, see `gradaudit.backends.reach.passed`."""
        return passed(self._problem, self._build, self._problem.weights, steps, moves)

    def moved(self, losses: Array, states: Array, moves: Array) -> Array:
        """The losses with states moved, see `gradaudit.backends.reach.moved`."""
        return moved(self._problem, self._build, self._problem.weights, losses, states, moves)

    def frozen(self) -> FrozenModel | None:
        """The loss with the cut states held; None where nothing is cut."""
        return frozen(self._problem, self._build) if self._cuts else None

    def twin(self) -> NetworkModel | None:
        """The same network in float64, from the same numbers."""
        if self._problem.dtype == "float64":
            return None
        weights = {name: weight.astype("float64") for name, weight in self._problem.weights.items()}
        return NetworkModel(replace(self._problem, weights=weights), self._build)

    def sizes(self) -> Mapping[str, int]:
        """N and T."""
        return {"sequences": self._problem.n_sequences, "steps": self._problem.n_steps}

    def preserved(self) -> AbstractContextManager[None]:
        """The framework's state, as its backend preserves it."""
        return self._model.preserved()

    def environment(self) -> Mapping[str, str]:
        """The framework and its version."""
        return self._model.environment()


class NetworkBackend(ABC):
    """What every backend's `gradaudit.protocols.Backend` makes of its network."""

    @abstractmethod
    def network(self, problem: Problem) -> Network:
        """The network of a problem."""

    def dense_model(self, spec: RecurrentSpec, weights: NamedArrays, data: SequenceData) -> NetworkModel:
        """A dense layer on all N*T vectors as one batch."""
        dense = {name: weights[name] for name in spec.shapes(feed_forward=True)}
        return NetworkModel(Problem(spec=spec, weights=dense, data=data, feed_forward=True), self.network)

    def recurrent_model(
        self, spec: RecurrentSpec, weights: NamedArrays, data: SequenceData, truncation: Truncation = none()
    ) -> NetworkModel:
        """The recurrent network, truncated."""
        return NetworkModel(Problem(spec=spec, weights=weights, data=data, truncation=truncation), self.network)
