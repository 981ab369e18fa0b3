"""A loss with cut values held at the base point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import final

from gradaudit.arrays import Gradients, NamedArrays, Scalar
from gradaudit.protocols import FrameworkModel

__all__ = ["HeldModel"]


@final
class HeldModel:
    """A loss with cut values held: one point at a time, since vmap and forward mode hide what depends on parameters."""

    def __init__(self, model: FrameworkModel, twin: Callable[[], HeldModel | None]) -> None:
        self._model = model
        self._twin = twin

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._model.parameters()

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss."""
        return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its gradient, of which nothing flows through the held values."""
        return self._model.value_and_grad(parameters)

    def twin(self) -> HeldModel | None:
        """The same in float64, the values held at what they are in float64."""
        return self._twin()

    def preserved(self) -> AbstractContextManager[None]:
        """PyTorch's global state as it was."""
        return self._model.preserved()

    def environment(self) -> Mapping[str, str]:
        """PyTorch's version."""
        return self._model.environment()
