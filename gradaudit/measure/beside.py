"""A point beside the base point: where a kink hides what it allows, the gradient is judged off the kink."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from gradaudit.arrays import NamedArrays, eps, frozen_copy
from gradaudit.compare import Verdict, worst
from gradaudit.direction import Point, displace, random_direction
from gradaudit.errors import NonFiniteLossError
from gradaudit.measure import plan
from gradaudit.measure.around import Around
from gradaudit.measure.baseline import Baseline, baseline
from gradaudit.measure.judgement import Measurement
from gradaudit.measure.measurement import measured
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model
from gradaudit.sites import Cut

__all__ = ["AtKink", "Beside", "judged_beside"]

#: Far enough that the kink lies outside the steps that decide, near enough to be the same region of the loss.
_AWAY, _AWAY_SINGLE = 0.01, 0.05
_SINGLE_EPS = 1e-12
_STRIDE = 7


@dataclass(frozen=True, slots=True, eq=False)
class AtKink:
    """The base point, where the gradient was judged beside it."""

    baseline: Baseline
    total: Measurement


@final
class Beside(Around):
    """A model whose base point is another one.

    Args:
        model: the model.
        parameters: its base point from now on.
    """

    def __init__(self, model: Model, parameters: NamedArrays) -> None:
        super().__init__(model)
        self._parameters = frozen_copy(parameters)

    def _around(self, model: Model) -> Model:
        dtypes = {name: p.dtype for name, p in model.parameters().items()}
        return Beside(model, {name: p.astype(dtypes[name]) for name, p in self._parameters.items()})

    def parameters(self) -> NamedArrays:
        """The point beside."""
        return self._parameters

    def holding(self, cuts: Collection[Cut]) -> None:
        """Nothing: values would be held that belong to the other point."""


def judged_beside(
    model: Model, total: Measurement, options: AuditOptions, budget: Budget
) -> tuple[Beside, Baseline, Measurement] | None:
    """The gradient judged at a point beside, where kinks at the base point leave it open.

    At a kink every slope between the two sides is allowed, so an error of that size could hide along the same
    direction. A little off, the loss is differentiable again, and the same code has nowhere to hide.

    Returns:
        None where no kink leaves the gradient open, or where the point beside leaves it open too.
    """
    kinks = [line.estimate.status for line in total.lines if line.estimate.status in ("kink", "jump")]
    if worst(total.verdicts.values()) is not Verdict.INCONCLUSIVE or not kinks or "jump" in kinks:
        return None
    parameters = model.parameters()
    away = _AWAY if all(eps(p.dtype) < _SINGLE_EPS for p in parameters.values()) else _AWAY_SINGLE
    direction = random_direction("beside", plan.scales(parameters), options.seed + _STRIDE)
    moved = Beside(model, displace(parameters, Point(direction, away)))
    try:
        base = baseline(moved, options, budget)
    except (Stop, NonFiniteLossError):
        return None
    if not base.repeatable:
        return None
    found = measured(moved, base.loss, base.gradients, options, budget)
    # what the base point condemns is not cleared elsewhere
    clears = found.verdict is Verdict.AGREE and total.verdict is not Verdict.DISAGREE
    decided = clears or found.verdict is Verdict.DISAGREE
    return (moved, base, found) if decided else None
