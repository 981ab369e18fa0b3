"""The recurrent or dense network of any backend, as a model with all its capabilities.

A backend supplies a `gradaudit.protocols.Network`; what is the same everywhere is here, once: twin, frozen objective,
other truncations are the same problem with one field replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TypeAlias, final

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.direction import Point
from gradaudit.protocols import Network
from gradaudit.recurrent import Held, Problem, Truncation

__all__ = ["Build", "NetworkModel"]

Build: TypeAlias = Callable[[Problem], Network]


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
        """The weights: W (D, H), b (H,) and, if recurrent, R (H, H), and h0 (H,) if learned."""
        return self._problem.weights

    def loss(self, parameters: NamedArrays) -> Scalar:
        """Mean categorical cross-entropy over all steps, or over the last."""
        return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its gradient as truncated."""
        return self._model.value_and_grad(parameters)

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """Forward mode, of the gradient as truncated."""
        return self._model.jvp(parameters, tangents)

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        return self._model.point_bytes

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,)."""
        return self._model.along(points)

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step adds to the loss, (T,)."""
        return self._network.step_losses(parameters)

    def terms(self, parameters: NamedArrays) -> Array:
        """The step losses: summed in float64 they lose fewer digits than their float32 sum."""
        return self.step_losses(parameters)

    @property
    def truncation(self) -> Truncation:
        """The truncation as declared."""
        return self._problem.truncation

    def with_truncation(self, truncation: Truncation) -> NetworkModel:
        """The same loss with another truncation, nothing held."""
        return NetworkModel(replace(self._problem, truncation=truncation, held=None), self._build)

    def frozen(self) -> NetworkModel | None:
        """The last T - c steps from the state held after step c, the earlier losses held too; None if c = 0."""
        n_cut = self._problem.n_cut
        if n_cut == 0 or self._problem.held is not None:
            return None
        parameters = self._problem.weights
        held = Held(
            state=self._network.state_after(parameters, n_cut),
            step_losses=self._network.step_losses(parameters)[:n_cut],
        )
        return NetworkModel(replace(self._problem, held=held), self._build)

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
