"""A slope with an error bound, from values on both sides of the base point.

The odd part of the loss, ``o(h) = (f(h) - f(-h)) / 2 = f'(0) h + a3 h^3 + ...``, is fitted by weighted least squares on
windows of levels (a longest step and those below it) with 1, 2, ... terms. Neighbouring windows and one more term show
the truncation error, the weights show the noise: the bound is built from both (the idea of comparing neighbours is
Romberg's 1955 and Ridders' 1982; weighting by noise instead of trusting a tableau is what keeps the bound honest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array

__all__ = ["Candidate", "Levels", "candidates", "choose", "levels"]

#: Six standard deviations: the noise is not normal, and its level is itself an estimate.
_NOISE = 6.0
#: A change between neighbours, three times over: truncation errors shrink by more than that from level to level.
_CHANGE = 3.0
#: A truncation error below the noise of the test for it was not seen.
_UNSEEN = 3.0
#: Constants and elementary functions in the loss's own precision tilt the slope by some tens of eps.
_SYSTEMATIC = 100.0
_WIDEST = 9
_RANK = 1e-8


@dataclass(frozen=True, slots=True)
class Levels:
    """Odd and even parts on descending steps h (L,), and their standard deviations."""

    steps: Array
    odd: Array
    even: Array
    spread: Array


@dataclass(frozen=True, slots=True)
class Candidate:
    """One window and number of terms.

    Attributes:
        start: index of its longest level.
        step: that level's step.
        terms: of the odd polynomial; the truncation error is of order 2 * terms.
        value: the slope.
        noise: its standard deviation.
        change: the larger difference to its neighbours.
        unseen: the noise of that difference.
        bound: on the error of the slope.
    """

    start: int
    step: float
    terms: int
    value: float
    noise: float
    change: float
    unseen: float
    bound: float


def levels(steps: Array, values: Array, base: float, sigma: float, eps: float) -> Levels:
    """Pair the values at +h and -h; a level with a missing side is left out."""
    at = dict(zip(steps.tolist(), values.tolist(), strict=True))
    both = (h for h in at if h > 0 and np.isfinite(at[h]) and np.isfinite(at.get(-h, np.nan)))
    pairs = [(h, at[h], at[-h]) for h in sorted(both, reverse=True)]
    h, plus, minus = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else [np.zeros(0)] * 3
    spread = np.maximum(sigma, 0.5 * eps * np.maximum(np.abs(plus), np.abs(minus)))
    return Levels(steps=h, odd=(plus - minus) / 2, even=(plus + minus) / 2 - base, spread=spread / np.sqrt(2))


def candidates(seen: Levels, eps: float) -> list[Candidate]:
    """All windows and numbers of terms that have both neighbours."""
    n = len(seen.steps)
    fits = {(i, m): _slope(seen, i, m) for i in range(n) for m in range(1, min(n - i, _WIDEST) + 1)}
    found = []
    for (i, m), fit in fits.items():
        shorter, richer = fits.get((i + 1, m)), fits.get((i, m + 1))
        if fit is None or shorter is None or richer is None:
            continue
        change = max(abs(fit[0] - shorter[0]), abs(fit[0] - richer[0]))
        unseen = min(shorter[1], richer[1])
        bound = _NOISE * fit[1] + _CHANGE * change + _UNSEEN * unseen + _SYSTEMATIC * eps * abs(fit[0])
        found.append(Candidate(i, float(seen.steps[i]), m, fit[0], fit[1], change, unseen, bound))
    return found


def choose(found: Sequence[Candidate], first_top: float) -> Candidate | None:
    """The smallest bound that no candidate at shorter steps contradicts.

    A window above the first ladder vouches only for a slope that it sees: far out, a saturating function is flat.
    """
    ranked = sorted(found, key=lambda c: c.bound)
    best = next((c for c in ranked if not any(_contradicts(other, c) for other in found)), None)
    if best is not None and best.step > first_top * 1.01 and abs(best.value) <= best.bound:
        return choose([c for c in found if c.step <= first_top * 1.01], first_top)
    return best


def _contradicts(shorter: Candidate, c: Candidate) -> bool:
    return shorter.step < c.step and abs(c.value - shorter.value) > c.bound + shorter.bound


def _slope(seen: Levels, start: int, terms: int) -> tuple[float, float] | None:
    """Slope and standard deviation from the window that starts at one level; None if it is degenerate."""
    window = slice(start, start + _WIDEST)
    unit = seen.steps[start]
    x = seen.steps[window] / unit
    powers = 2 * np.arange(terms) + 1
    solved = _weighted(x[:, None] ** powers, seen.odd[window], seen.spread[window])
    if solved is None:
        return None
    value, deviation, chi2 = solved
    # the even part sees a misfit (a kink, a jump) that the odd part does not; its intercept is the error of f(0)
    even = _weighted(x[:, None] ** (2 * np.arange(terms + 1)), seen.even[window], seen.spread[window])
    if even is not None:
        chi2 = max(chi2, even[2])
    return value / unit, deviation * max(1.0, np.sqrt(chi2)) / unit


def _weighted(design: Array, values: Array, spread: Array) -> tuple[float, float, float] | None:
    """First coefficient, its standard deviation, and chi^2 per degree of freedom (0 where there is none)."""
    n, m = design.shape
    if n < m:
        return None
    weights = 1 / np.maximum(spread, np.finfo(np.float64).tiny)
    scaled = design * weights[:, None]
    lengths = np.sqrt((scaled * scaled).sum(axis=0))
    q, r = np.linalg.qr(scaled / lengths)
    diagonal = np.abs(np.diag(r))
    if diagonal.min() < _RANK * diagonal.max():
        return None
    inverse = np.linalg.solve(r, np.eye(m))
    coefficients = inverse @ (q.T @ (values * weights))
    rest = values * weights - (scaled / lengths) @ coefficients
    chi2 = float(rest @ rest) / (n - m) if n > m else 0.0
    deviation = float(np.sqrt((inverse[0] ** 2).sum()))
    return float(coefficients[0] / lengths[0]), deviation / float(lengths[0]), chi2
