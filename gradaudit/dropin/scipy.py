"""``check_grad`` as in `scipy.optimize`: same arguments, the same number, without a step to choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradaudit.numeric.jacobian import jacobian

__all__ = ["check_grad"]


def check_grad(
    func: Callable[..., Any],
    grad: Callable[..., Any],
    x0: Any,
    *args: Any,
    epsilon: Any = 1.4901161193847656e-08,
    direction: str = "all",
    rng: Any = None,
) -> float:
    """The 2-norm of the difference between a gradient and the numeric one.

    A difference within the estimated error of the numeric one, rounding included, counts as none: then it is 0.0.

    Args:
        func: of x0 and args, returns a number, or several.
        grad: its gradient (n,), or Jacobian (m, n).
        x0: where, (n,).
        *args: given to both.
        epsilon: not used.
        direction: ``"all"``: every entry; ``"random"``: along a random vector.
        rng: a `numpy.random.Generator`, or what `numpy.random.default_rng` takes, for the random vector.

    Raises:
        ValueError: another direction; a random one of several numbers.
    """
    del epsilon
    x = np.asarray(x0)
    analytic = np.asarray(grad(x, *args), np.float64)
    if direction == "all":
        point = x.astype(np.float64).reshape(-1)
        numeric, error = jacobian(lambda v: np.asarray(func(v.reshape(x.shape), *args)), point)
    elif direction == "random":
        if analytic.ndim > 1:
            msg = "'random' can only be used with scalar valued func"
            raise ValueError(msg)
        v = np.random.default_rng(rng).standard_normal(x.shape)
        analytic = np.dot(analytic, v)
        along = lambda w: np.asarray(func(x + w[0] * v, *args))  # noqa: E731
        numeric, error = jacobian(along, np.zeros(1))
    else:
        msg = f"{direction} is not a valid string for ``direction`` argument"
        raise ValueError(msg)
    gap = np.abs(analytic.reshape(numeric.shape) - numeric)
    return float(np.sqrt(np.sum(np.where(gap <= error, 0.0, gap) ** 2)))
