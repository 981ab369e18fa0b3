"""The derivative from one evaluation at a complex point: no difference is taken, so no digits are lost.

``d f(p + t v) / dt = Im f(p + i h v) / h + O(h^2)`` for a function that is analytic and computes in complex arithmetic
(Lyness & Moler 1967; Squire & Trapp 1998). A function that is not (abs, max, a comparison, a conjugate) gives a wrong
number without a word, so a model must ask for it, and its first answer is compared with the ladder's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradaudit.arrays import NamedArrays
from gradaudit.direction import Direction
from gradaudit.numeric.budget import Budget
from gradaudit.numeric.estimate import DerivativeEstimate
from gradaudit.protocols import SupportsComplexStep

__all__ = ["agrees", "complex_step"]

#: h^2 vanishes beside 1 in float64, and h times a loss of 1e-250 is still a normal number.
_STEP = 1e-40
#: Forward rounding of the imaginary part, relative to the largest derivative seen.
_ROUNDING = 1e-13


def complex_step(
    model: SupportsComplexStep,
    parameters: NamedArrays,
    directions: Sequence[Direction],
    first: DerivativeEstimate,
    budget: Budget,
) -> list[DerivativeEstimate]:
    """One evaluation a direction.

    Args:
        model: whose loss takes complex parameters.
        parameters: the base point.
        directions: v, each.
        first: a full estimate of the model, for its base value and noise.
        budget: charged before evaluating.

    Raises:
        Stop: the budget is spent.
    """
    budget.take(len(directions), "complex step")
    slopes = [_slope(model, parameters, direction) for direction in directions]
    finite = [abs(slope) for slope in slopes if np.isfinite(slope)]
    rounding = _ROUNDING * max([abs(first.value), *finite])
    return [
        DerivativeEstimate(
            value=slope,
            bound=rounding if np.isfinite(slope) else float("inf"),
            base=first.base,
            sigma=first.sigma,
            step=_STEP,
            order=2,
            evaluations=1,
            status="converged" if np.isfinite(slope) else "left the domain",
            constant=False,
            still=slope == 0,
        )
        for slope in slopes
    ]


def agrees(complex_estimate: DerivativeEstimate, ladder_estimate: DerivativeEstimate) -> bool:
    """Whether both methods give the same derivative: the loss is analytic here."""
    gap = abs(complex_estimate.value - ladder_estimate.value)
    return bool(gap <= complex_estimate.bound + ladder_estimate.bound)


def _slope(model: SupportsComplexStep, parameters: NamedArrays, direction: Direction) -> float:
    moved = {}
    for name, p in parameters.items():
        v = direction.block(name, p.shape)
        moved[name] = p.astype(np.complex128) if v is None else p + 1j * _STEP * v
    try:
        value = np.asarray(model.complex_loss(moved))
    except Exception:  # noqa: BLE001  # a function that cannot compute with complex numbers has no complex step
        return float("nan")
    return float(value.imag) / _STEP if np.iscomplexobj(value) and value.shape == () else float("nan")
