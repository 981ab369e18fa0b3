"""A numeric Jacobian entry by entry, by extrapolated central differences: for those who want the numbers themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradaudit.arrays import Array

__all__ = ["jacobian"]

#: The longest step, relative to the size of the argument; each next one is shorter by this ratio.
_LONGEST, _RATIO, _LEVELS = 0.1, 2.0, 7


def jacobian(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """The derivatives of m outputs by n inputs, and an estimate of their errors, by Ridders' method (1982).

    Central differences at shorter and shorter steps are extrapolated to step zero; of the whole tableau the entry with
    the smallest estimated error counts, for each derivative by itself. 14 evaluations for each input.

    Args:
        function: n numbers, float64 (n,), -> m numbers (m,). What is not finite is the edge of its domain.
        x: where, (n,).

    Returns:
        Jacobian (m, n), float64, and the estimated errors (m, n); infinite where no step worked.
    """
    x = np.asarray(x, np.float64)
    typical = float(np.sqrt(np.mean(np.square(x)))) if x.size else 1.0
    columns, errors = [], []
    for j in range(x.size):
        size = abs(float(x[j])) or typical or 1.0
        column, error = _column(function, x, j, _LONGEST * size)
        columns.append(column)
        errors.append(error)
    n_outputs = np.asarray(function(x)).size
    shape = (n_outputs, x.size)
    return np.array(columns).T.reshape(shape), np.array(errors).T.reshape(shape)


def _column(function: Callable[[Array], Array], x: Array, j: int, longest: float) -> tuple[Array, Array]:
    """The derivatives by the j-th input."""
    row: list[Array] = []
    best = error = None
    for i in range(_LEVELS):
        h = longest / _RATIO**i
        differences = [_central(function, x, j, h)]
        for k, above in enumerate(row, start=1):
            power = _RATIO ** (2 * k)
            differences.append((power * differences[-1] - above) / (power - 1))
        if best is None or error is None:
            best, error = differences[0], np.full(differences[0].shape, np.inf)
        for k in range(1, len(differences)):
            off = np.maximum(np.abs(differences[k] - differences[k - 1]), np.abs(differences[k] - row[k - 1]))
            better = np.isfinite(off) & (off < error)
            best, error = np.where(better, differences[k], best), np.where(better, off, error)
        row = differences
    assert best is not None
    assert error is not None
    return best, error


def _central(function: Callable[[Array], Array], x: Array, j: int, h: float) -> Array:
    up, down = x.copy(), x.copy()
    up[j] += h
    down[j] -= h
    with np.errstate(all="ignore"):
        difference = np.asarray(function(up), np.float64) - np.asarray(function(down), np.float64)
        return np.asarray(difference.reshape(-1) / (up[j] - down[j]))
