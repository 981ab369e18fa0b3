"""Coefficients with error bounds, from values on a ladder of steps.

A smooth function near the base point is a power series in the step h. One of its coefficients is wanted: the slope is
that of h in the odd part ``(f(h) - f(-h)) / 2 = f'(0) h + a3 h^3 + ...``. Windows of levels (a longest step and those
below it) are fitted by weighted least squares with more and more terms. Neighbouring windows and one more term show
the truncation error, the weights show the noise: the bound is built from both (the idea of comparing neighbours is
Romberg's 1955 and Ridders' 1982; weighting by noise instead of trusting a tableau is what keeps the bound honest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array

__all__ = ["EVEN", "ODD", "Candidate", "Levels", "Series", "candidates", "choose", "levels", "side", "slopes"]

#: Six standard deviations: the noise is not normal, and its level is itself an estimate.
_NOISE = 6.0
#: A change between neighbours, three times over: truncation errors shrink by more than that from level to level.
_CHANGE = 3.0
#: A truncation error below the noise of the test for it was not seen.
_UNSEEN = 3.0
#: Constants and elementary functions in the loss's own precision tilt the slope by some tens of eps.
_SYSTEMATIC = 100.0
#: Of 130,000 estimates in float64, of fresh problems, 3 were off by just over one bound; the tail falls tenfold in 0.2.
_MARGIN, _DOUBLE = 1.25, 1e-12
#: Residuals this many times the noise are structure of the function, not noise.
_CLEAR = 10.0
_WIDEST = 9
_RANK = 1e-8
#: Values without any noise are weighted as if they had this, so that the squares of the weights stay finite.
_NO_SPREAD = 1e-140

ODD = tuple(range(1, 2 * _WIDEST, 2))
EVEN = tuple(range(0, 2 * _WIDEST + 2, 2))


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Odd and even parts on descending steps h (L,), and their standard deviations."""

    steps: Array
    odd: Array
    even: Array
    spread: Array


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Values on descending steps, to be read as a power series.

    Attributes:
        powers: of the step; the coefficient of the first is wanted, the others are added in this order.
        least: the fewest terms that make sense.
        check: values that must fit as well, and their powers (one more than terms), for the misfit.
    """

    steps: Array
    values: Array
    spread: Array
    powers: tuple[int, ...]
    least: int = 1
    check: tuple[Array, tuple[int, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One window and number of terms.

    Attributes:
        start: index of its longest level.
        step: that level's step.
        terms: of the series.
        value: the coefficient.
        noise: its standard deviation, misfit included.
        misfit: by how much the residuals exceed the noise of the values (1: not at all).
        change: the larger difference to its neighbours.
        unseen: the noise of that difference.
        bound: on the error of the coefficient.
    """

    start: int
    step: float
    terms: int
    value: float
    noise: float
    misfit: float
    change: float
    unseen: float
    bound: float


def levels(steps: Array, values: Array, base: float, sigma: float, eps: float) -> Levels:
    """Pair the values at +h and -h; a level with a missing side is left out."""
    at = dict(zip(steps.tolist(), values.tolist(), strict=True))
    both = (h for h in at if h > 0 and np.isfinite(at[h]) and np.isfinite(at.get(-h, np.nan)))
    pairs = [(h, at[h], at[-h]) for h in sorted(both, reverse=True)]
    h, plus, minus = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else [np.zeros(0)] * 3
    spread = _spread(np.maximum(np.abs(plus), np.abs(minus)), sigma, eps) / np.sqrt(2)
    return Levels(steps=h, odd=(plus - minus) / 2, even=(plus + minus) / 2 - base, spread=spread)


def slopes(seen: Levels) -> Series:
    """The slope: the odd part, with the even part as a check.

    The even part sees a misfit (a kink, a jump) that the odd part does not; its intercept is the error of f(0).
    """
    return Series(seen.steps, seen.odd, seen.spread, ODD, check=(seen.even, EVEN))


def side(steps: Array, values: Array, base: float, sigma: float, eps: float, sign: int) -> Series:
    """The slope from one side of the base point, which is a level itself: for the edge of a domain."""
    mine = np.isfinite(values) & (steps * sign > 0)
    order = np.argsort(-np.abs(steps[mine]))
    h = np.append(np.abs(steps[mine])[order], 0.0)
    y = np.append(values[mine][order] - base, 0.0)
    return Series(h, sign * y, _spread(np.abs(y + base), sigma, eps), (1, 0, *range(2, 7)), least=2)


def candidates(series: Series, eps: float) -> list[Candidate]:
    """All windows and numbers of terms that have both neighbours."""
    n = int((series.steps > 0).sum())
    fits = {(i, m): fit for i in range(n) for m, fit in enumerate(_window(series, i, n - i), start=series.least)}
    found = []
    for (i, m), fit in fits.items():
        shorter, richer = fits.get((i + 1, m)), fits.get((i, m + 1))
        if fit is None or shorter is None or richer is None:
            continue
        change = max(abs(fit[0] - shorter[0]), abs(fit[0] - richer[0]))
        unseen = min(shorter[1], richer[1])
        bound = _NOISE * fit[1] + _CHANGE * change + _UNSEEN * unseen + _SYSTEMATIC * eps * abs(fit[0])
        bound *= _MARGIN if eps < _DOUBLE else 1.0
        found.append(Candidate(i, float(series.steps[i]), m, *fit, change, unseen, bound))
    return found


def choose(found: Sequence[Candidate], first_top: float) -> Candidate | None:
    """The smallest bound that no candidate at shorter steps contradicts.

    A window above the first ladder vouches only for a slope that it sees, and sees clearly: far out, a saturating
    function is flat, and a staircase is a line.
    """
    found = [c for c in found if c.step <= first_top * 1.01 or c.misfit <= _CLEAR]
    ranked = sorted(found, key=lambda c: c.bound)
    best = next((c for c in ranked if not any(_contradicts(other, c) for other in found)), None)
    if best is not None and best.step > first_top * 1.01 and abs(best.value) <= best.bound:
        return choose([c for c in found if c.step <= first_top * 1.01], first_top)
    return best


def _contradicts(shorter: Candidate, c: Candidate) -> bool:
    return shorter.step < c.step and abs(c.value - shorter.value) > c.bound + shorter.bound


def _spread(size: Array, sigma: float, eps: float) -> Array:
    return np.maximum(sigma, 0.5 * eps * size)


def _window(series: Series, start: int, n_levels: int) -> list[tuple[float, float, float] | None]:
    """Coefficient, standard deviation and misfit with each number of terms from ``least`` on; None: degenerate.

    Args:
        series: the values.
        start: the level at which the window starts.
        n_levels: from there on, the base point not counted.
    """
    window = slice(start, start + _WIDEST)
    unit = series.steps[start]
    x = (series.steps[window] / unit)[:, None]
    most = min(n_levels, _WIDEST, len(series.powers))
    solved = _weighted(x ** np.array(series.powers[:most]), series.values[window], series.spread[window])
    # with m terms, the check has m + 1
    other: list[tuple[float, float, float] | None] = [None] * most
    if series.check is not None:
        values, powers = series.check
        other = _weighted(x ** np.array(powers[: most + 1]), values[window], series.spread[window])[1:]
    scale = unit ** series.powers[0]
    found: list[tuple[float, float, float] | None] = []
    for fit, check in list(zip(solved, other, strict=True))[series.least - 1 :]:
        if fit is None:
            found.append(None)
            continue
        value, deviation, chi2 = fit
        misfit = max(1.0, float(np.sqrt(chi2 if check is None else max(chi2, check[2]))))
        found.append((value / scale, deviation * misfit / scale, misfit))
    return found


def _weighted(design: Array, values: Array, spread: Array) -> list[tuple[float, float, float] | None]:
    """The fits with the first column of the design, the first two, and so on; None: degenerate.

    Of each the first coefficient, its standard deviation, and chi^2 per degree of freedom (0 where there is none). One
    factorisation serves them all: its leading parts are those of the leading columns.
    """
    n, m = design.shape
    weights = 1 / np.maximum(spread, _NO_SPREAD)
    scaled = design * weights[:, None]
    lengths = np.sqrt((scaled * scaled).sum(axis=0))
    unit = scaled / lengths
    q, r = np.linalg.qr(unit)
    diagonal = np.abs(r.diagonal())
    usable = np.minimum.accumulate(diagonal) > _RANK * np.maximum.accumulate(diagonal)
    k = int(usable.sum())
    if k == 0:
        return [None] * m
    inverse = np.linalg.solve(r[:k, :k], np.eye(k))
    wanted = values * weights
    # column j: the coefficients of the fit with j + 1 terms
    coefficients = np.cumsum(inverse * (q[:, :k].T @ wanted), axis=1)
    rest = wanted[:, None] - unit[:, :k] @ coefficients
    squares = (rest * rest).sum(axis=0)
    deviations = np.sqrt(np.cumsum(inverse[0] ** 2)) / lengths[0]
    chi2 = squares / np.maximum(n - np.arange(1, k + 1), 1)
    chi2[n - 1 :] = 0.0
    fits = zip((coefficients[0] / lengths[0]).tolist(), deviations.tolist(), chi2.tolist(), strict=True)
    return [*fits, *[None] * (m - k)]
