"""Derivatives along given displacements from six losses each, with an error."""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import Array

__all__ = ["NEARBY", "NODES", "richardson"]

#: Relative to the size of what is moved: the error of order six is that of rounding about there, in float64.
_STEP = 2e-3
#: Where the losses are wanted, in units of the displacement.
NODES = _STEP * np.array([1.0, -1.0, 2.0, -2.0, 4.0, -4.0])
#: So near that nothing but rounding shows beside a straight line; unequal, since equal steps alias it.
NEARBY = 1e-7 * np.array([1.0, -0.9, 0.73, -0.61, 0.47, -0.38, 0.21, -0.13])
#: Roundings of a loss that is a sum over steps.
_ROUNDINGS = 30.0


def richardson(losses: Array, rounding: Array | float) -> tuple[Array, Array]:
    """The derivatives, and their errors, from losses (6, ...) at `NODES`.

    Central differences with h, 2h and 4h, extrapolated twice (Richardson 1911): the error of the second extrapolation
    is far below its correction to the first, which is what counts as the error here, beside rounding.

    Args:
        losses: at the nodes, float64; or sums of them, since all of this is linear.
        rounding: of one loss; at least eps times the loss, and more where it is a small difference of large numbers.
    """
    one, two, four = (losses[::2] - losses[1::2]) / (NODES[::2] * 2).reshape(-1, *[1] * (losses.ndim - 1))
    fine, coarse = (4 * one - two) / 3, (4 * two - four) / 3
    best = (16 * fine - coarse) / 15
    return best, np.abs(best - fine) + _ROUNDINGS * rounding / _STEP
