"""Random generators and framework state: as before after an audit, and the same before every evaluation if asked."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import final

import numpy as np

from gradaudit.arrays import Gradients, NamedArrays, Scalar
from gradaudit.protocols import Model, SupportsCuts, SupportsEnvironment, SupportsSizes, SupportsState, SupportsTwin
from gradaudit.sites import Cut

__all__ = ["SeedFixed", "preserved"]


@contextmanager
def preserved(model: Model) -> Iterator[None]:
    """Random generators and the framework's state are as before, also after an exception."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  # the user's legacy generator
    try:
        with model.preserved() if isinstance(model, SupportsState) else nullcontext():
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@final
class SeedFixed:
    """A model that draws the same random numbers at every evaluation: those of the audit's start.

    It works for generators that can be put back (NumPy's and Python's global ones, those that the framework's
    ``preserved`` covers); a generator that the loss keeps to itself goes on. Batches would draw other numbers, so there
    are none.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._model.parameters()

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss, drawn from the same state every time."""
        with preserved(self._model):
            return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """Loss and gradient, drawn from the same state every time."""
        with preserved(self._model):
            return self._model.value_and_grad(parameters)

    def twin(self) -> Model | None:
        """The float64 twin, drawing from the same state; its draws may differ, and then so does its loss."""
        with preserved(self._model):
            twin = self._model.twin() if isinstance(self._model, SupportsTwin) else None
        return None if twin is None else SeedFixed(twin)

    def cuts(self) -> Sequence[Cut]:
        """The model's cuts."""
        with preserved(self._model):
            return self._model.cuts() if isinstance(self._model, SupportsCuts) else ()

    def without(self, cuts: Collection[Cut]) -> Model | None:
        """The model without some cuts, drawing from the same state."""
        other = self._model.without(cuts) if isinstance(self._model, SupportsCuts) else None
        return None if other is None else SeedFixed(other)

    def holding(self, cuts: Collection[Cut]) -> Model | None:
        """The model with cut values held, drawing from the same state; they are recorded from that state, too."""
        with preserved(self._model):
            other = self._model.holding(cuts) if isinstance(self._model, SupportsCuts) else None
        return None if other is None else SeedFixed(other)

    def sizes(self) -> Mapping[str, int]:
        """The model's own sizes."""
        return self._model.sizes() if isinstance(self._model, SupportsSizes) else {}

    def environment(self) -> Mapping[str, str]:
        """The model's framework."""
        return self._model.environment() if isinstance(self._model, SupportsEnvironment) else {}
