"""The verdict rule: AGREE, DISAGREE or INCONCLUSIVE from an error bound. No absolute floor, nothing times the size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from gradaudit.arrays import Gradients
from gradaudit.direction import Direction
from gradaudit.numeric.estimate import DerivativeEstimate

__all__ = ["Comparison", "Precision", "Verdict", "compare", "worst"]

#: float32 back-propagation is off by up to 70 eps of the rms product, measured; 16 covers the typical, the
#: tolerance of the dtype the rest.
_ANALYTIC_RMS = 16.0
_ANALYTIC_VALUE = 64.0
#: Nearby kinks hide in float32 noise and tilt the slope: without a twin a gap must exceed the bound threefold.
_NATIVE_SINGLE = 3.0
#: Relative differences that rounding of the analytic side in its own dtype can account for.
_TOLERANCE_DOUBLE = 1e-6
_TOLERANCE_SINGLE = 3e-4
#: A derivative that is zero within its bound counts as zero when the bound is this small beside the whole gradient.
_NEGLIGIBLE = 1e-4
_SINGLE_EPS = 1e-12


class Verdict(Enum):
    """What an audit says."""

    AGREE = "AGREE"
    INCONCLUSIVE = "INCONCLUSIVE"
    DISAGREE = "DISAGREE"

    def __str__(self) -> str:
        return self.value


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """DISAGREE before INCONCLUSIVE before AGREE."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.AGREE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How exactly the two sides compute.

    Attributes:
        analytic: machine epsilon of the gradient's dtype.
        numeric: machine epsilon of the loss that supplied the numbers.
    """

    analytic: float
    numeric: float

    @property
    def tolerance(self) -> float:
        """Relative differences that rounding can account for."""
        return _TOLERANCE_SINGLE if self.analytic > _SINGLE_EPS else _TOLERANCE_DOUBLE

    @property
    def caution(self) -> float:
        """By how much a gap must exceed the bound to count as an error."""
        return _NATIVE_SINGLE if self.numeric > _SINGLE_EPS else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Analytic against numeric along one direction.

    Attributes:
        analytic: <g, v>.
        numeric: the numeric derivative along v.
        bound: on the error of both sides together.
        scale: the size of a derivative along v if nothing cancels; errors are relative to it.
        resolution: an error above this, relative to ``scale``, would have been seen.
        relative_error: |analytic - numeric| / scale.
        verdict: of this direction alone.
    """

    direction: Direction
    analytic: float
    numeric: float
    bound: float
    scale: float
    resolution: float
    relative_error: float
    verdict: Verdict


def compare(
    direction: Direction,
    estimate: DerivativeEstimate,
    gradients: Gradients,
    *,
    precision: Precision,
    whole: float,
    significant: float,
) -> Comparison:
    """Judge one direction.

    Args:
        direction: v.
        estimate: the numeric derivative along it.
        gradients: the analytic gradient; a missing tensor counts as zero.
        precision: of both sides.
        whole: ||g * v|| of the whole model, beside which a derivative may be negligible.
        significant: the relative error that AGREE must be able to see.
    """
    analytic, rms = direction.dot(gradients), direction.norm(gradients)
    numeric = estimate.value
    own = precision.analytic * (_ANALYTIC_RMS * direction.reach(gradients) + _ANALYTIC_VALUE * abs(analytic))
    bound = estimate.bound + own
    scale = rms if math.isnan(numeric) else max(rms, abs(numeric))
    gap = abs(analytic - numeric)
    threshold = precision.caution * bound + precision.tolerance * scale
    resolution = threshold / scale if scale > 0 else 0.0 if threshold == 0 else float("inf")
    negligible = abs(analytic) <= bound and abs(numeric) <= bound <= _NEGLIGIBLE * whole
    if gap > threshold:
        verdict = Verdict.DISAGREE
    elif (rms == 0 and estimate.constant) or negligible:
        verdict = Verdict.AGREE
        resolution = bound / whole if whole > 0 else 0.0
    elif resolution <= significant and gap <= bound + precision.tolerance * scale:
        verdict = Verdict.AGREE
    else:
        verdict = Verdict.INCONCLUSIVE
    relative = gap / scale if scale > 0 else 0.0
    if not math.isfinite(analytic):
        relative = resolution = float("inf")
    return Comparison(
        direction=direction,
        analytic=analytic,
        numeric=float(numeric),
        bound=float(bound),
        scale=float(scale),
        resolution=float(resolution),
        relative_error=float(relative),
        verdict=verdict,
    )
