"""The base point: is the model what it claims to be, does it repeat itself, what is its gradient?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from gradaudit.arrays import (
    Array,
    Gradients,
    NamedArrays,
    ParameterSpec,
    Scalar,
    as_scalar,
    check_gradients,
    check_parameters,
    eps,
    specs,
)
from gradaudit.errors import ModelContractError, NonFiniteLossError, OptionError
from gradaudit.measure.plan import scales
from gradaudit.numeric.budget import Budget
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model

__all__ = ["Baseline", "baseline", "gradient_at", "gradient_of"]

#: Reordered sums differ by this many eps; more than that is randomness.
_REPEATS = 64.0
#: The same for two gradients, relative to the tensor's norm: atomics add in any order.
_GRADIENT_REPEATS = 1e4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """What is known at the base point.

    Attributes:
        loss: in its own dtype.
        gradients: of the selected parameters, copies; None where the framework gives none.
        again: the gradients of a second call.
        specs: of the selected parameters.
        loss_spread: largest difference among three losses.
        repeatable: three losses were equal within rounding.
        gradient_repeatable: two gradients were equal within reordered sums.
    """

    loss: Scalar
    gradients: Gradients
    again: Gradients
    specs: tuple[ParameterSpec, ...]
    loss_spread: float
    repeatable: bool
    gradient_repeatable: bool


def baseline(model: Model, options: AuditOptions, budget: Budget) -> Baseline:
    """Check the contract and evaluate the base point: the loss three times, the gradient twice.

    Raises:
        ModelContractError: names, shapes, dtypes, a non-scalar loss, inputs changed in place.
        NonFiniteLossError: the loss is NaN or infinite.
        OptionError: the parameter selection matches nothing.
    """
    parameters = model.parameters()
    check_parameters(parameters)
    selected = _select(parameters, options.parameters)
    budget.take(3, "baseline")
    losses = [_loss(model, parameters) for _ in range(3)]
    spread = float(max(losses)) - float(min(losses))
    repeatable = spread <= _REPEATS * eps(losses[0].dtype) * abs(float(losses[0]))
    first_loss, gradients = gradient_of(model, budget)
    _, again = gradient_of(model, budget)
    difference = abs(float(first_loss) - float(losses[0]))
    if repeatable and difference > 1e3 * eps(losses[0].dtype) * abs(float(losses[0])):
        msg = f"loss() is {losses[0]}, but value_and_grad() returns the loss {first_loss} at the same parameters"
        raise ModelContractError(msg, where="value_and_grad()", hint="differentiate the same loss in both")
    return Baseline(
        loss=losses[0],
        gradients={name: gradients[name] for name in selected},
        again={name: again[name] for name in selected},
        specs=specs(selected),
        loss_spread=spread,
        repeatable=repeatable,
        gradient_repeatable=_close(selected, gradients, again),
    )


def gradient_of(model: Model, budget: Budget) -> tuple[Scalar, Gradients]:
    """The loss and copies of the gradients at the base point, checked.

    Raises:
        ModelContractError: names, shapes or dtypes do not fit, or the parameters were changed in place.
    """
    parameters = model.parameters()
    budget.take(1, "gradient")
    given = _copies(parameters)
    loss, gradients = model.value_and_grad(given)
    _unchanged(parameters, given, "value_and_grad()")
    check_gradients(parameters, gradients)
    return loss, {name: None if g is None else np.array(g) for name, g in gradients.items()}


def gradient_at(model: Model, parameters: NamedArrays, budget: Budget) -> Gradients:
    """Copies of the gradients somewhere else, not checked."""
    budget.take(1, "gradient")
    _, gradients = model.value_and_grad(_copies(parameters))
    return {name: None if g is None else np.array(g) for name, g in gradients.items()}


def _loss(model: Model, parameters: NamedArrays) -> Scalar:
    given = _copies(parameters)
    loss = as_scalar(model.loss(given), "loss()")
    _unchanged(parameters, given, "loss()")
    if not np.isfinite(loss):
        msg = f"the loss is {loss} at the base point, so it has no derivative there"
        raise NonFiniteLossError(msg, where="loss()", hint="start from parameters with a finite loss")
    return loss


def _copies(parameters: NamedArrays) -> dict[str, Array]:
    return {name: np.array(array) for name, array in parameters.items()}


def _unchanged(parameters: NamedArrays, given: NamedArrays, where: str) -> None:
    for name, array in parameters.items():
        changed = int((~((given[name] == array) | (np.isnan(given[name]) & np.isnan(array)))).sum())
        if changed:
            msg = f"{where} changed its argument {name!r} in place: {changed} of {array.size} entries"
            hint = f"work on a copy, for example {name} = {name}.copy(), or write {name} = {name} + x instead of +="
            raise ModelContractError(msg, where=where, hint=hint)


def _select(parameters: Mapping[str, Array], pattern: str) -> dict[str, Array]:
    # an empty tensor has nothing to audit, and is nobody's mistake
    full = {name: array for name, array in parameters.items() if array.size}
    chosen = {name: array for name, array in full.items() if fnmatchcase(name, pattern)}
    if not chosen:
        msg = f"parameters={pattern!r} matches none of {', '.join(full)}"
        raise OptionError(msg, where="options", hint="a glob such as 'encoder.*', or '*' for all")
    return chosen


def _close(parameters: NamedArrays, ones: Gradients, others: Gradients) -> bool:
    """Within reordered sums of each tensor, or of all: what cancels, as before a normalisation, is all rounding."""
    lengths = scales(parameters)
    whole = np.sqrt(sum(_norm(g * lengths[name]) ** 2 for name in parameters if (g := ones[name]) is not None))
    for name in parameters:
        one, other = ones[name], others[name]
        if one is None or other is None:
            if one is not other:
                return False
            continue
        with np.errstate(invalid="ignore"):  # two infinities
            difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
        finite = np.isfinite(difference)
        moved, size = _norm(difference), _norm(np.where(finite, one, 0))
        of_all = _norm(difference * lengths[name]) <= _REPEATS * eps(one.dtype) * whole
        if moved > _GRADIENT_REPEATS * eps(one.dtype) * size and not of_all:
            return False
    return True


def _norm(x: Array) -> float:
    """Of the finite entries."""
    return float(np.linalg.norm(x[np.isfinite(x)]))
