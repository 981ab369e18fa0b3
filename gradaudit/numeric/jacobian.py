"""A numeric Jacobian entry by entry, by extrapolated central differences: for those who want the numbers themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradaudit.arrays import Array, eps

__all__ = ["jacobian"]

#: The longest step, relative to the size of the argument; each next one is shorter by this ratio.
_LONGEST, _RATIO, _LEVELS = 0.1, 2.0, 7
#: A value is off by a few units in its last place.
_UNITS = 4.0


def jacobian(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """The derivatives of m outputs by n inputs, and an estimate of their errors, by Ridders' method (1982).

    Central differences at shorter and shorter steps are extrapolated to step zero; of the whole tableau the entry with
    the smallest estimated error counts, for each derivative by itself: how far its neighbours differ, and the
    rounding. 14 evaluations for each input, and one.

    Args:
        function: n numbers, float64 (n,), -> m numbers (m,). What is not finite is the edge of its domain.
        x: where, (n,).

    Returns:
        Jacobian (m, n), float64, and the estimated errors (m, n); infinite where no step worked.
    """
    x = np.asarray(x, np.float64)
    typical = float(np.sqrt(np.mean(np.square(x)))) if x.size else 1.0
    base, _ = _values(function, x)
    columns, errors = [], []
    for j in range(x.size):
        size = abs(float(x[j])) or typical or 1.0
        column, error = _column(function, x, base, j, _LONGEST * size)
        columns.append(column)
        errors.append(error)
    shape = (base.size, x.size)
    return np.array(columns).T.reshape(shape), np.array(errors).T.reshape(shape)


def _column(function: Callable[[Array], Array], x: Array, base: Array, j: int, longest: float) -> tuple[Array, Array]:
    """The derivatives by the j-th input."""
    row: list[Array] = []
    rounding: list[Array] = []
    best = error = None
    for i in range(_LEVELS):
        h = longest / _RATIO**i
        difference, rounded = _central(function, x, base, j, h)
        differences, noise = [difference], [rounded]
        for k, above in enumerate(row, start=1):
            power = _RATIO ** (2 * k)
            differences.append((power * differences[-1] - above) / (power - 1))
            noise.append((power * noise[-1] + rounding[k - 1]) / (power - 1))
        if best is None or error is None:
            best, error = difference, np.full(difference.shape, np.inf)
        for k in range(1, len(differences)):
            off = np.maximum(np.abs(differences[k] - differences[k - 1]), np.abs(differences[k] - row[k - 1]))
            off += noise[k]
            better = np.isfinite(off) & (off < error)
            best, error = np.where(better, differences[k], best), np.where(better, off, error)
        row, rounding = differences, noise
    assert best is not None
    assert error is not None
    return best, error


def _central(function: Callable[[Array], Array], x: Array, base: Array, j: int, h: float) -> tuple[Array, Array]:
    """A central difference, and the rounding in it: of the values, and of what they are computed from.

    Entries of the tableau agree by chance to less than that. A value that is computed from x to within some eps of x
    is off by as much times the slope there, which a small value, the square of a residual, does not tell.
    """
    up, down = x.copy(), x.copy()
    up[j] += h
    down[j] -= h
    with np.errstate(all="ignore"):
        (above, unit), (below, _) = _values(function, up), _values(function, down)
        apart = float(up[j] - down[j])
        slope = np.maximum(np.abs(above - base), np.abs(below - base)) / h
        size = np.maximum(np.abs(above), np.abs(below)) + slope * max(abs(up[j]), abs(down[j]))
        return (above - below) / apart, _UNITS * unit * size / apart


def _values(function: Callable[[Array], Array], x: Array) -> tuple[Array, float]:
    """What a function returns, as float64 (m,), and the unit of its own dtype."""
    values = np.asarray(function(x)).reshape(-1)
    return values.astype(np.float64), eps(values.dtype if values.dtype.kind == "f" else np.float64)
