"""A float32 gradient along paths: the difference of the losses at both ends is the integral of the gradient between.

A float32 loss resolves differences over long steps only, and over a long step the slope is no longer that of the base
point: kinks lie between. But the gradient can be asked there, too (the fundamental theorem of calculus, for a function
that is continuous and piecewise smooth). The integral is Simpson's on nested points, so that its error is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, eps
from gradaudit.compare import excluded
from gradaudit.direction import Point, displace, random_direction
from gradaudit.measure.baseline import gradient_at
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.protocols import Model

__all__ = ["Along", "along_paths"]

#: Paths of a tensor; half their length, in units of the tensor's size; intervals, a multiple of 4.
_PATHS, _HALF, _INTERVALS = 10, 0.25, 32
#: What is left over may be so many times the known errors, root mean square over the paths.
_HOLDS = 3.0
#: Roundings of the losses at both ends, and of the gradient beside its size if nothing cancels, in units of eps.
_LOSS, _GRADIENT = 4.0, 16.0


@dataclass(frozen=True, slots=True)
class Along:
    """One tensor along its paths.

    Attributes:
        holds: the integrals are the differences, as far as both are known.
        resolution: a relative error above this would have been seen, infinite for too few paths.
    """

    holds: bool
    resolution: float


def along_paths(model: Model, name: str, scale: float | Array, budget: Budget, seed: int) -> Along:
    """Integrate the gradient of one tensor along random paths through the base point; 2 losses and 33 gradients each.

    Args:
        model: the native one.
        name: of the tensor.
        scale: its typical size.
        budget: is charged.
        seed: of the paths.

    Raises:
        Stop: the budget is spent.
    """
    unknown = Along(holds=False, resolution=float("inf"))
    try:
        paths = np.array([_path(model, name, scale, budget, seed + i) for i in range(_PATHS)])
    except Stop:
        raise
    except Exception:  # noqa: BLE001  # whatever the function raises there, a path left its domain
        return unknown
    gaps, errors, whole = paths.T
    if not np.isfinite(paths).all() or not np.all(whole > 0):
        return unknown
    holds = bool(np.sum(gaps**2) <= _HOLDS**2 * np.sum(errors**2))
    return Along(holds=holds, resolution=excluded((np.abs(gaps) / whole).tolist()))


def _path(model: Model, name: str, scale: float | Array, budget: Budget, seed: int) -> tuple[float, float, float]:
    """Difference minus integral, the error of both, and the size of the gradient along it if nothing cancels."""
    parameters = model.parameters()
    direction = random_direction(name, {name: scale}, seed)
    points = [displace(parameters, Point(direction, t)) for t in np.linspace(-_HALF, _HALF, _INTERVALS + 1)]
    # as the ends are after rounding
    span = np.asarray(points[-1][name], np.float64) - np.asarray(points[0][name], np.float64)
    budget.take(2, "paths")
    first, last = (model.loss(_copy(points[i])) for i in (0, -1))
    products = [_product(gradient_at(model, point, budget), name, span) for point in points]
    slopes = np.array([p.sum() for p in products])
    fine, coarse = _simpson(slopes), _simpson(slopes[::2])
    sizes = [float(np.linalg.norm(p)) for p in products]
    # an error is relative to the gradient at the base point: far out it may be another order of magnitude
    size = min(float(np.sqrt(np.mean(np.square(sizes)))), sizes[_INTERVALS // 2])
    unit = eps(first.dtype)
    rounding = unit * (_LOSS * max(abs(float(first)), abs(float(last))) + _GRADIENT * max(sizes))
    return float(last) - float(first) - fine, abs(fine - coarse) + rounding, size


def _product(gradients: Gradients, name: str, span: Array) -> Array:
    g = gradients[name]
    return np.zeros(1) if g is None else np.asarray(g, np.float64) * span


def _simpson(slopes: Array) -> float:
    """The mean of equally spaced values by Simpson's rule."""
    weights = np.ones(len(slopes))
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    return float(slopes @ weights / weights.sum())


def _copy(parameters: NamedArrays) -> dict[str, Array]:
    return {name: np.array(p) for name, p in parameters.items()}
