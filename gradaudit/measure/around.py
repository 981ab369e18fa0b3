"""A model around another one: what the other can do, it can do too, each in its own way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from gradaudit.arrays import Gradients, NamedArrays, Scalar
from gradaudit.protocols import (
    Model,
    StepVariant,
    SupportsCuts,
    SupportsEnvironment,
    SupportsMixedPrecision,
    SupportsOrigin,
    SupportsRules,
    SupportsSizes,
    SupportsTwin,
    SupportsVariants,
)
from gradaudit.sites import CustomRule, Cut, Origin

__all__ = ["Around"]


class Around:
    """A model that is evaluated one point at a time; what it cannot do is answered with nothing.

    Args:
        model: the model inside.
    """

    def __init__(self, model: Model) -> None:
        self._model = model

    def _around(self, model: Model) -> Model:
        """The same around another model."""
        return type(self)(model)

    def _during(self) -> AbstractContextManager[None]:
        """What surrounds every use of the model."""
        return nullcontext()

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._model.parameters()

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss."""
        with self._during():
            return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """Loss and gradient."""
        with self._during():
            return self._model.value_and_grad(parameters)

    def twin(self) -> Model | None:
        """The float64 twin."""
        with self._during():
            return self._wrapped(self._model.twin() if isinstance(self._model, SupportsTwin) else None)

    def cuts(self) -> Sequence[Cut]:
        """The model's cuts."""
        with self._during():
            return self._model.cuts() if isinstance(self._model, SupportsCuts) else ()

    def without(self, cuts: Collection[Cut]) -> Model | None:
        """The model without some cuts."""
        with self._during():
            return self._wrapped(self._model.without(cuts) if isinstance(self._model, SupportsCuts) else None)

    def holding(self, cuts: Collection[Cut]) -> Model | None:
        """The model with cut values held."""
        with self._during():
            return self._wrapped(self._model.holding(cuts) if isinstance(self._model, SupportsCuts) else None)

    def rules(self) -> Sequence[CustomRule]:
        """The model's hand-written derivatives."""
        with self._during():
            return self._model.rules() if isinstance(self._model, SupportsRules) else ()

    def replacing(self, rules: Collection[CustomRule]) -> Model | None:
        """The model with hand-written derivatives replaced."""
        with self._during():
            return self._wrapped(self._model.replacing(rules) if isinstance(self._model, SupportsRules) else None)

    def origin(self) -> Origin | None:
        """Where the model's gradient stops being finite."""
        with self._during():
            return self._model.origin() if isinstance(self._model, SupportsOrigin) else None

    def variants(self) -> Sequence[StepVariant] | None:
        """The model's step, run differently; None: it is no step."""
        with self._during():
            found = self._model.variants() if isinstance(self._model, SupportsVariants) else None
        return (
            None
            if found is None
            else [StepVariant(kind=v.kind, detail=v.detail, model=self._around(v.model)) for v in found]
        )

    def narrow(self) -> float | None:
        """The narrower format of the model."""
        with self._during():
            return self._model.narrow() if isinstance(self._model, SupportsMixedPrecision) else None

    def sizes(self) -> Mapping[str, int]:
        """The model's own sizes."""
        return self._model.sizes() if isinstance(self._model, SupportsSizes) else {}

    def environment(self) -> Mapping[str, str]:
        """The model's framework."""
        return self._model.environment() if isinstance(self._model, SupportsEnvironment) else {}

    def _wrapped(self, model: Model | None) -> Model | None:
        return None if model is None else self._around(model)
