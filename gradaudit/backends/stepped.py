"""A training step that returns its gradient, as a model: the objective's loss, the step's gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.backends.over import OverModel
from gradaudit.errors import ModelContractError
from gradaudit.protocols import FrameworkModel, StepVariant

__all__ = ["SteppedModel", "chosen"]


@final
class SteppedModel(OverModel):
    """The objective that a step is meant for, whose gradient is the step's; its float64 twin has its own gradient.

    Args:
        objective: the loss.
        step: parameters -> the step's gradient, by name.
        sizes: the user's own sizes, by which a factor is named.
    """

    def __init__(
        self, objective: FrameworkModel, step: Callable[[NamedArrays], Gradients], sizes: Mapping[str, int]
    ) -> None:
        super().__init__(objective)
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

    def variants(self) -> Sequence[StepVariant]:
        """None: nothing is known of what the step does."""
        return ()


def chosen(
    returned: Any, parameters: NamedArrays, named: Callable[[Any], Mapping[str, Any] | None]
) -> dict[str, Array | None]:
    """The gradient among what a step returns: it alone, or an element of a tuple or list.

    Args:
        returned: by the step.
        parameters: by name.
        named: something that was returned -> its arrays by parameter name, None for a missing one; None where it is not
            of that form.

    Raises:
        ModelContractError: there is none.
    """
    shapes = {name: p.shape for name, p in parameters.items()}
    several = list(returned) if isinstance(returned, (tuple, list)) else []
    for candidate in [returned, *several]:
        found = named(candidate)
        if found is None or set(found) != set(shapes):
            continue
        try:
            arrays = {name: None if g is None else np.asarray(g) for name, g in found.items()}
        except ValueError:  # no array: a tuple of a loss and a gradient
            continue
        given = {name: g.shape for name, g in arrays.items() if g is not None}
        if given and all(shape == shapes[name] for name, shape in given.items()):
            return arrays
    msg = f"the step returns a {type(returned).__name__} in which there is no gradient of {', '.join(shapes)}"
    hint = "return the gradient, or a tuple with it, of the same structure and shapes as the parameters"
    raise ModelContractError(msg, where="audit_step()", hint=hint)
