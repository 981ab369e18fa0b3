"""How noisy one evaluation of a loss is: the standard deviation of its rounding error."""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import Array

__all__ = ["cluster_residual", "cluster_slope", "noise_level", "quantum"]

#: A correctly rounded result is off by eps/2 at most, uniformly: eps/sqrt(12).
_ROUNDED = 0.29
_RELATIVE = 0.3
#: A unit up to this share of the loss is that of a number format (float32 has 2^-23); a coarser one is the loss's own:
#: counts and rounded values are piecewise constant, not noisy.
_FORMAT = 2.0**-20


def noise_level(cluster: tuple[Array, Array], raw: Array, base: float, eps: float) -> float:
    """The standard deviation of one value, as the largest of three witnesses.

    Args:
        cluster: steps and values (K,) near the base point, as wide as nothing but noise shows.
        raw: all values seen, as the model returned them.
        base: the loss at the base point.
        eps: machine epsilon of the loss's dtype.
    """
    unit = quantum(raw)
    rounded = _ROUNDED * unit if unit <= _FORMAT * abs(base) else 0.0
    return max(_RELATIVE * eps * abs(base), rounded, cluster_residual(*cluster))


def quantum(values: Array) -> float:
    """The largest power of two that divides all values: a float32 loss handed over as a double shows it."""
    finite = values[np.isfinite(values) & (values != 0)]
    if not finite.size:
        return 0.0
    mantissa, exponent = np.frexp(np.abs(finite))
    digits = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = digits & -digits
    return float(np.ldexp(lowest.astype(np.float64), exponent - 53).min())


def cluster_residual(steps: Array, values: Array) -> float:
    """What no smooth curve, and no pair of lines meeting at 0, explains of the values near the base point.

    The smallest of three fits, so that curvature or a kink is not taken for noise: quadratic, cubic, and separate
    lines on both sides (a finite difference table, as Hamming 1971 and More & Wild 2011 use, would need equal steps,
    which alias the rounding of the arguments).
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(steps) < 5:
        return float("inf")
    x = steps / np.abs(steps).max()
    fits = [_residual(np.vander(x, terms), values) for terms in (3, 4) if len(steps) >= terms + 2]
    sides = [x > 0, x < 0]
    if all(side.sum() >= 3 for side in sides):
        squares = [_residual(np.vander(x[side], 2), values[side]) ** 2 * (side.sum() - 2) for side in sides]
        fits.append(float(np.sqrt(sum(squares) / (sum(side.sum() for side in sides) - 4))))
    return float(min(fits))


def cluster_slope(steps: Array, values: Array, sigma: float) -> tuple[float, float]:
    """The slope of a line through the values near the base point, and its standard deviation."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(steps) < 3:
        return 0.0, float("inf")
    centred = steps - steps.mean()
    square = float(centred @ centred)
    return float(centred @ (values - values.mean())) / square, sigma / float(np.sqrt(square))


def _residual(design: Array, values: Array) -> float:
    offset = values.mean()
    solution, *_ = np.linalg.lstsq(design, values - offset, rcond=None)
    rest = values - offset - design @ solution
    return float(np.sqrt((rest @ rest) / (len(values) - design.shape[1])))
