"""Other estimators of a derivative, behind one interface, with their own error estimates taken at face value.

Each takes ``phi(t)``, a function of one number whose value is NaN where it is not defined, and the machine epsilon of
its values; it returns the derivative at 0, its bound and the number of evaluations. The bound is NaN where the method
has none, and infinite where it has one but failed (a point outside the domain, mostly).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numdifftools
import numpy as np
from scipy import differentiate

__all__ = ["RIVALS", "Rival"]

Phi = Callable[[float], float]
Rival = Callable[[Phi, float], tuple[float, float, int]]
#: Anything coarser is single precision.
_DOUBLE_EPS = 1e-12


class _Counted:
    """phi for numbers and arrays alike, counting."""

    def __init__(self, phi: Phi) -> None:
        self.phi = phi
        self.calls = 0

    def __call__(self, t: np.ndarray) -> np.ndarray:
        steps = np.asarray(t)
        self.calls += steps.size
        values = [self.phi(float(step)) for step in steps.ravel()]
        return np.array(values, steps.dtype).reshape(steps.shape)[()]


def scipy_derivative(phi: Phi, eps: float) -> tuple[float, float, int]:
    """At its defaults; its tolerances follow the dtype of the point, so that is the dtype of the loss."""
    counted = _Counted(phi)
    zero = np.float64(0) if eps < _DOUBLE_EPS else np.float32(0)
    found = differentiate.derivative(counted, zero)
    return _answer(found.df, found.error, counted.calls)


def _answer(value: Any, bound: Any, calls: int) -> tuple[float, float, int]:
    return float(value), float(bound) if np.isfinite(value) and np.isfinite(bound) else float("inf"), calls


def numdifftools_derivative(phi: Phi, eps: float) -> tuple[float, float, int]:  # noqa: ARG001  # has no such option
    """At its defaults: steps from 2 downwards by halves, extrapolated."""
    counted = _Counted(phi)
    found = numdifftools.Derivative(counted, full_output=True)(0.0)
    return _answer(found.estimate, found.error_estimate, counted.calls)


def central(phi: Phi, eps: float, step: float) -> tuple[float, float, int]:  # noqa: ARG001  # that is its weakness
    """What people write by hand."""
    return (phi(step) - phi(-step)) / (2 * step), float("nan"), 2


def _quiet(rival: Rival) -> Rival:
    """NaN from the edge of a domain makes them warn or raise; either way there is no answer."""

    def estimate(phi: Phi, eps: float) -> tuple[float, float, int]:
        counted = _Counted(phi)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                return rival(counted, eps)
            except (ArithmeticError, ValueError, IndexError):
                return float("nan"), float("inf"), counted.calls

    return estimate


RIVALS: dict[str, Rival] = {
    "scipy.differentiate": _quiet(scipy_derivative),
    "numdifftools": _quiet(numdifftools_derivative),
    "central 1e-5": _quiet(partial(central, step=1e-5)),
    "central 1e-6": _quiet(partial(central, step=1e-6)),
}
