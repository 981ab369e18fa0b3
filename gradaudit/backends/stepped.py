"""A training step that returns its gradient, as a model: the objective's loss, the step's gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.over import OverModel
from gradaudit.direction import Point, displace
from gradaudit.errors import ModelContractError
from gradaudit.protocols import FrameworkModel, Model, StepVariant
from gradaudit.sites import Broadcast

__all__ = ["OverStep", "SteppedModel", "by_rows", "chosen", "loss_among", "unasked"]

_Named: TypeAlias = Callable[[Any], Mapping[str, Any] | None]


class OverStep(OverModel):
    """A model whose gradient is a step's.

    Args:
        objective: that the step is meant for; where the step returns it, only its parameters and state count.
        returned: parameters -> the loss that the step returns, which is then the objective: one point at a time, in the
            step's own precision.
    """

    def __init__(self, objective: FrameworkModel, returned: Callable[[NamedArrays], Any] | None) -> None:
        super().__init__(objective)
        self._returned = returned

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The objective.

        Raises:
            ModelContractError: there is none, or it is no real number.
        """
        if self._returned is None:
            return super().loss(parameters)
        value = self._returned(parameters)
        if isinstance(value, float):  # a number of Python's has the digits of what it was made of
            value = np.asarray(value, next(iter(parameters.values())).dtype)
        return as_scalar(value, "the loss that the step returns")

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes; a step takes them one by one."""
        return super().point_bytes if self._returned is None else sum(p.nbytes for p in self.parameters().values())

    def along(self, points: Sequence[Point]) -> Array:
        """The objective at K points, (K,)."""
        if self._returned is None:
            return super().along(points)
        return np.array([self.loss(displace(self.parameters(), point)) for point in points])

    def twin(self) -> Model | None:
        """The objective in float64, with its own gradient; None: it is what the step returns."""
        return super().twin() if self._returned is None else None

    def narrow(self) -> float | None:
        """The narrower format of the objective; of what a step returns that is not known."""
        return super().narrow() if self._returned is None else None

    def broadcasts(self) -> Sequence[Broadcast]:
        """Where the objective is taken over pairs; of what a step returns that is not known."""
        return super().broadcasts() if self._returned is None else ()

    def variants(self) -> Sequence[StepVariant]:
        """The objective with its own gradient; of what a step returns there is none."""
        return [StepVariant(kind="objective", detail="", model=self._model)] if self._returned is None else []


@final
class SteppedModel(OverStep):
    """The objective that a step is meant for, whose gradient is the step's; its float64 twin has its own gradient.

    Args:
        objective: the loss.
        step: parameters -> the step's gradient, by name.
        sizes: the user's own sizes, by which a factor is named.
        returned: see `OverStep`.
    """

    def __init__(
        self,
        objective: FrameworkModel,
        step: Callable[[NamedArrays], Gradients],
        sizes: Mapping[str, int],
        *,
        returned: Callable[[NamedArrays], Any] | None = None,
    ) -> None:
        super().__init__(objective, returned)
        self._step, self._sizes = step, dict(sizes)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The objective, and the gradient that the step returns.

        Raises:
            ModelContractError: it returns none.
        """
        return self.loss(parameters), self._step(parameters)

    def sizes(self) -> Mapping[str, int]:
        """The user's sizes."""
        return self._sizes


def chosen(returned: Any, parameters: NamedArrays, named: _Named) -> dict[str, Array | None]:
    """The gradient among what a step returns: it alone, or an element of a tuple or list.

    Args:
        returned: by the step.
        parameters: by name.
        named: something that was returned -> its arrays by parameter name, None for a missing one; None where it is not
            of that form.

    Raises:
        ModelContractError: there is none.
    """
    for candidate in [returned, *_several(returned)]:
        found = named(candidate)
        if found is not None and _fits(found, parameters):
            return {name: None if g is None else np.asarray(g) for name, g in found.items()}
    msg = f"the step returns a {type(returned).__name__} in which there is no gradient of {', '.join(parameters)}"
    hint = "return the gradient, or a tuple with it, of the same structure and shapes as the parameters"
    raise ModelContractError(msg, where="audit_step()", hint=hint)


def loss_among(returned: Any, parameters: NamedArrays, named: _Named) -> Any:
    """The loss among what a step returns: it alone, or the first number of shape () in a tuple or list.

    Args:
        returned: by the step.
        parameters: by name.
        named: as in `chosen`; what is a gradient as a whole holds no loss.

    Raises:
        ModelContractError: there is none.
    """
    found = named(returned)
    several = [] if found is not None and _fits(found, parameters) else _several(returned)
    for candidate in [returned, *several]:
        if isinstance(candidate, float) or (
            tuple(getattr(candidate, "shape", (0,))) == () and "float" in str(getattr(candidate, "dtype", ""))
        ):
            return candidate
    msg = f"the step returns {_what(returned)}, in which there is no loss, and no loss= is given"
    hint = "return the loss from the step, a number of shape (); or give the objective: loss=lambda target: ..."
    raise ModelContractError(msg, where="audit_step()", hint=hint)


def by_rows(rows: Sequence[int]) -> list[tuple[str, list[float]]]:
    """What micro-batches that count the same would count if each did by its rows, and in words what they do count.

    Args:
        rows: of each micro-batch.

    Returns:
        For a mean of their means, and for a sum of them: the words, and a weight for each. Empty where all are equal.
    """
    found = []
    for each in (len(rows), 1) if len(set(rows)) > 1 and all(rows) else ():
        weights = [n * each / sum(rows) for n in rows]
        detail = ", ".join(
            f"micro-batch {i} ({n} of {sum(rows)} rows) counts {1 / w:.3g} times"
            for i, (n, w) in enumerate(zip(rows, weights, strict=True), 1)
        )
        found.append((detail, weights))
    return found


def unasked(target: Any) -> Any:
    """What stands for the loss of a model whose step returns it: nobody calls it."""
    msg = f"the loss of a {type(target).__name__} comes from its step"
    raise AssertionError(msg)


def _several(returned: Any) -> list[Any]:
    return list(returned) if isinstance(returned, (tuple, list)) else []


def _fits(found: Mapping[str, Any], parameters: NamedArrays) -> bool:
    """Whether these are the parameters' names and shapes; np.shape: a value that JAX traces has no array."""
    try:
        given = {name: tuple(np.shape(g)) for name, g in found.items() if g is not None}
    except ValueError:  # no array: a tuple of a loss and a gradient
        return False
    known = set(found) == set(parameters) and bool(given)
    return known and all(shape == parameters[name].shape for name, shape in given.items())


def _what(returned: Any) -> str:
    inside = ", ".join(type(x).__name__ for x in _several(returned))
    return f"a {type(returned).__name__}" + (f" of {inside}" if inside else "")
