"""A model over another one: all is the other's but the gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.direction import Point
from gradaudit.protocols import FrameworkModel, Model, SupportsBroadcasts, SupportsMixedPrecision, SupportsTwin
from gradaudit.sites import Broadcast

__all__ = ["OverModel"]


class OverModel(ABC):
    """A model whose gradient comes another way.

    Args:
        model: for all else.
    """

    def __init__(self, model: FrameworkModel) -> None:
        self._model = model

    @abstractmethod
    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss, and the gradient that comes another way."""

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._model.parameters()

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss."""
        return self._model.loss(parameters)

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        return self._model.point_bytes

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,)."""
        return self._model.along(points)

    def twin(self) -> Model | None:
        """The other model in float64, with its own gradient."""
        return self._model.twin() if isinstance(self._model, SupportsTwin) else None

    def narrow(self) -> float | None:
        """The narrower format of the other model, which is taken to be that of the gradient as well."""
        return self._model.narrow() if isinstance(self._model, SupportsMixedPrecision) else None

    def broadcasts(self) -> Sequence[Broadcast]:
        """Where the loss is taken over pairs."""
        return self._model.broadcasts() if isinstance(self._model, SupportsBroadcasts) else ()

    def preserved(self) -> AbstractContextManager[None]:
        """The framework's state."""
        return self._model.preserved()

    def environment(self) -> Mapping[str, str]:
        """The framework's version."""
        return self._model.environment()
