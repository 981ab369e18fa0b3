"""The verdict rule: AGREE, DISAGREE or INCONCLUSIVE from an error bound. No absolute floor, nothing times the size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import NormalDist

from gradaudit.arrays import Gradients
from gradaudit.direction import Direction
from gradaudit.numeric.estimate import DerivativeEstimate

__all__ = ["Comparison", "Precision", "Verdict", "caution", "compare", "detectable", "excluded", "worst"]

#: Back-propagation is off by 0.7 eps of the rms product, measured; 16 covers 85 %, the tolerance of the dtype the rest.
_ANALYTIC_RMS = 16.0
_ANALYTIC_VALUE = 64.0
#: Nearby kinks hide in float32 noise and tilt the slope: without a twin a gap must exceed the bound threefold.
_NATIVE_SINGLE = 3.0
#: Relative differences that rounding of the analytic side in its own dtype can account for.
_TOLERANCE_DOUBLE = 1e-6
_TOLERANCE_SINGLE = 3e-4
#: Six times what half a unit in the last place of the parameters does to the gradient: its conditioning.
_JITTER = 6.0
#: A derivative that is zero within its bound counts as zero when the bound is this small beside the whole gradient.
_NEGLIGIBLE = 1e-4
#: Where the whole gradient is zero: beside the loss, for a step as long as the parameters.
_NEGLIGIBLE_LOSS, _NEGLIGIBLE_EPS = 1e-9, 100.0
_SINGLE_EPS = 1e-12
#: The bound from a coarse number format is off by up to 12 times, measured.
_COARSE = 20.0
#: log10 of the probability that an error exceeds one bound, and by how much it falls with each bound more: a first look
#: and a full estimate (float64, fresh problems; extrapolated from the tail between 0.3 and 0.7 bounds).
_TAIL = ((-5.9, 5.0), (-7.1, 8.2))
#: An error spread over a tensor shows along a random direction as a normal number; "would have been seen" means with
#: this probability.
_SEEN = 0.99
#: One direction alone sees only errors of 80 times its resolution that surely; a bisection to one per mille.
_BLIND = 100.0
_HALVINGS = 14
#: Gaps alone bound an error if there are so many of them.
_FEWEST = 5


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Precision:
    """How exactly the two sides compute.

    Attributes:
        analytic: machine epsilon of the gradient's dtype.
        numeric: machine epsilon of the loss that supplied the numbers.
        reference: the gradient of a float64 twin, beside which the rounding of the analytic one shows.
        excess: what of the difference to it is more than rounding; none unless given.
        jittered: without a twin, gradients at parameters moved by one unit in the last place.
        caution: by how much a gap must exceed the bound to count as an error.
    """

    analytic: float
    numeric: float
    reference: Gradients | None = None
    excess: Gradients = field(default_factory=dict)
    jittered: tuple[Gradients, ...] = ()
    caution: float = 1.0

    @property
    def tolerance(self) -> float:
        """Relative differences that are not worth a verdict, beyond the rounding that is known."""
        known = self.reference is not None or self.analytic < _SINGLE_EPS
        return _TOLERANCE_DOUBLE if known else _TOLERANCE_SINGLE

    def rounding(self, direction: Direction, gradients: Gradients) -> float:
        """How far <g, v> may be off because g was computed in its own dtype."""
        reach, analytic = direction.reach(gradients), direction.dot(gradients)
        usual = self.analytic * (_ANALYTIC_RMS * reach + _ANALYTIC_VALUE * abs(analytic))
        if self.reference is not None:
            return abs(analytic - direction.dot(self.reference) - direction.dot(self.excess))
        return usual + _JITTER * max((abs(direction.dot(j) - analytic) for j in self.jittered), default=0.0)


def caution(numeric: float, false_alarm: float, n_comparisons: int) -> float:
    """By how much a gap must exceed the bound, so that a right gradient is condemned with this probability only.

    A gradient is condemned by two looks: an error of the first beyond c bounds, and of the full estimate beyond c
    bounds. Both probabilities fall exponentially with c, as measured on random problems (`benchmarks/derivatives.py
    --fresh`); the product, taken as independent, times the number of comparisons must not exceed the rate.

    Args:
        numeric: machine epsilon of the loss.
        false_alarm: accepted probability, an audit.
        n_comparisons: in the audit.
    """
    least = _NATIVE_SINGLE if numeric > _SINGLE_EPS else 1.0
    wanted = math.log10(false_alarm / max(1, n_comparisons))
    at_one = sum(offset for offset, _ in _TAIL)
    slope = sum(rate for _, rate in _TAIL)
    return max(least, 1 + (at_one - wanted) / slope)


def detectable(resolutions: Sequence[float]) -> float:
    """The relative error, spread over a tensor, that random directions of these resolutions see with 99 %.

    Along one direction an error of relative size r shows as r times a standard normal number z; it is missed by all
    of them with probability ``prod_i P(|z| < resolution_i / r)``. Solved for r.
    """
    finite = [r for r in resolutions if math.isfinite(r)]
    if not finite:
        return float("inf")
    if min(finite) == 0:
        return 0.0
    low, high = min(finite), min(finite) * _BLIND
    for _ in range(_HALVINGS):
        middle = math.sqrt(low) * math.sqrt(high)  # their product may be too small for a number
        missed = math.prod(2 * NormalDist().cdf(r / middle) - 1 for r in finite)
        low, high = (middle, high) if missed > 1 - _SEEN else (low, middle)
    return high


def excluded(gaps: Sequence[float]) -> float:
    """The relative error, spread over a tensor, that relative gaps along so many random directions exclude with 99 %.

    Along random directions an error of relative size r shows as r times independent standard normal numbers. Whatever
    the noise of the numbers, it is independent of those and makes the gaps larger, not smaller. So their squares add
    up to r^2 times the one per cent quantile of chi-square, or more (Wilson & Hilferty 1931: ``n (1 - 2 / (9 n) + z
    sqrt(2 / (9 n)))^3``, on the safe side here). Infinite for fewer gaps than tell anything.
    """
    n = len(gaps)
    if n < _FEWEST:
        return float("inf")
    quantile = n * (1 - 2 / (9 * n) + NormalDist().inv_cdf(1 - _SEEN) * math.sqrt(2 / (9 * n))) ** 3
    return math.sqrt(sum(gap * gap for gap in gaps) / quantile)


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
        holds: the bound accounts for the gap, however coarse it is.
        unmoved: both sides are nothing, within the bound.
    """

    direction: Direction
    analytic: float
    numeric: float
    bound: float
    scale: float
    resolution: float
    relative_error: float
    verdict: Verdict
    holds: bool
    unmoved: bool = False


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
    bound = estimate.bound + precision.rounding(direction, gradients)
    scale = rms if math.isnan(numeric) else max(rms, abs(numeric))
    gap = abs(analytic - numeric)
    threshold = precision.caution * bound + precision.tolerance * scale
    # what a kink allows hides an error elsewhere along the direction, unless the value is just one of the two slopes
    between = abs(gap - estimate.half_jump) > threshold and direction.entry is None
    hidden = threshold + estimate.half_jump if between else threshold
    resolution = hidden / scale if scale > 0 else 0.0 if hidden == 0 else float("inf")
    least = max(_NEGLIGIBLE_LOSS, _NEGLIGIBLE_EPS * precision.numeric)
    beside = _NEGLIGIBLE * whole if whole > 0 else least * max(abs(estimate.base), estimate.nearby)
    unmoved = abs(analytic) <= bound and abs(numeric) <= bound
    negligible = unmoved and bound <= beside
    if estimate.status == "kink":
        # any slope between the two sides is allowed
        gap = max(0.0, gap - estimate.half_jump)
    # no derivative at a jump, and none in digits that the loss does not have: nobody is condemned there
    coarse = estimate.status == "low precision inside"
    condemns = estimate.status != "jump" and (not coarse or (rms > 0 and gap > _COARSE * threshold))
    holds = gap <= bound + precision.tolerance * scale and estimate.status != "jump"
    if gap > threshold and condemns:
        verdict = Verdict.DISAGREE
    elif (rms == 0 and (estimate.constant or estimate.still)) or negligible:
        verdict = Verdict.AGREE
        resolution = bound / whole if whole > 0 else 0.0
    elif resolution <= significant and holds:
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
        holds=holds or verdict is Verdict.AGREE,
        unmoved=unmoved,
    )
