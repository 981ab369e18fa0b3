"""A point beside the base point: where a kink hides what it allows, the gradient is judged off the kink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from gradaudit.arrays import Gradients, NamedArrays, Scalar, eps, frozen_copy
from gradaudit.compare import Verdict, worst
from gradaudit.direction import Point, displace, random_direction
from gradaudit.errors import NonFiniteLossError
from gradaudit.measure import plan
from gradaudit.measure.baseline import Baseline, baseline
from gradaudit.measure.judgement import Measurement
from gradaudit.measure.measurement import measure
from gradaudit.measure.sources import choose
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model, SupportsSizes, SupportsTwin

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
class Beside:
    """A model whose base point is another one; its losses come one by one.

    Args:
        model: the model.
        parameters: its base point from now on.
    """

    def __init__(self, model: Model, parameters: NamedArrays) -> None:
        self._model = model
        self._parameters = frozen_copy(parameters)

    def parameters(self) -> NamedArrays:
        """The point beside."""
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The model's loss."""
        return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The model's loss and gradient."""
        return self._model.value_and_grad(parameters)

    def twin(self) -> Model | None:
        """The model's float64 twin at the same point."""
        twin = self._model.twin() if isinstance(self._model, SupportsTwin) else None
        dtypes = {} if twin is None else {name: p.dtype for name, p in twin.parameters().items()}
        return twin and Beside(twin, {name: p.astype(dtypes[name]) for name, p in self._parameters.items()})

    def sizes(self) -> Mapping[str, int]:
        """The model's own sizes."""
        return self._model.sizes() if isinstance(self._model, SupportsSizes) else {}


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
    found = measure(
        choose(moved, base.loss, base.gradients, budget, seed=options.seed), base.gradients, options, budget
    )
    # what the base point condemns is not cleared elsewhere
    clears = found.verdict is Verdict.AGREE and total.verdict is not Verdict.DISAGREE
    decided = clears or found.verdict is Verdict.DISAGREE
    return (moved, base, found) if decided else None
