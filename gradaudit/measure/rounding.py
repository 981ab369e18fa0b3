"""A float32 gradient beside that of its float64 twin: what repeats itself at other points is no rounding.

``D_j`` = native gradient minus the twin's at the j-th point, the base point and points near it. An error of the code is
a smooth function of the parameters: it is the same in all of them. Rounding is drawn anew at every point: the mean of n
differences has its standard deviation over the square root of n (Student 1908; that of the whole tensor is added, since
nine numbers show a standard deviation badly).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, eps
from gradaudit.measure import plan
from gradaudit.measure.baseline import gradient_at
from gradaudit.numeric.budget import Budget
from gradaudit.protocols import Model

__all__ = ["beyond_rounding"]

#: Some rounding repeats itself: that of functions and of sums of data (twice the 80 eps measured of functions); stored
#: constants are off by half a unit in the last place, which moves a gradient as much as its parameters' last places do.
_BIAS = 160.0
_CONDITION = 2.0
#: Points near the base point lie so far away (units in the last place); after so many a mean of differences is no
#: rounding beyond so many of its standard deviations: with 9 and 17 numbers that happens by chance with 2e-6 and 1e-7.
_FAR = 2.0**9
_LOOKS = ((8, 12.0), (16, 9.0))
#: Of the first points so many must be usable.
_LEAST = 4
#: Intermediate results are rounded beside 1, however small a derivative they leave (1 - tanh^2): this many eps of the
#: whole model's gradient, measured 0.5.
_WHOLE = 1.0


@dataclass(slots=True, eq=False)
class _Differences:
    """D_j summed over points, by tensor."""

    total: dict[str, Array]
    squares: dict[str, Array]
    points: int = 1

    def add(self, there: dict[str, Array]) -> None:
        if all(np.isfinite(there[n]).all() for n in self.total):
            self.total = {n: t + there[n] for n, t in self.total.items()}
            self.squares = {n: s + there[n] ** 2 for n, s in self.squares.items()}
            self.points += 1

    def mean(self) -> dict[str, Array]:
        return {n: t / self.points for n, t in self.total.items()}

    def noise(self, name: str) -> Array:
        """The standard deviation of the mean."""
        square = self.squares[name] - self.total[name] ** 2 / self.points
        variance = np.maximum(square, 0.0) / (self.points - 1)
        return np.asarray(np.sqrt((variance + variance.mean()) / self.points))


def beyond_rounding(
    model: Model, twin: Model, gradients: Gradients, reference: Gradients, budget: Budget, seed: int
) -> dict[str, Array]:
    """By tensor and entry, float64: the part of the difference to the twin that rounding does not account for.

    Args:
        model: the native one.
        twin: in float64.
        gradients: of ``model`` at its base point, those under audit; a missing one counts as zero.
        reference: of ``twin`` there.
        budget: two gradients are charged to it; where differences are larger than what repeats, 34 at most.
        seed: of the points.
    """
    native = model.parameters()
    given = [n for n, g in gradients.items() if g is not None or reference.get(n) is not None]
    apart = {n: d for n, d in _apart(gradients, reference).items() if n in given and np.isfinite(d).all()}
    allowed = _repeating(native, gradients, _moved(native, twin, reference, budget, seed))
    beyond = {n: _soft(d, allowed[n]) for n, d in apart.items()}
    if not any(b.any() for b in beyond.values()):
        return beyond
    seen = _Differences(apart, {n: d * d for n, d in apart.items()})
    tried = 0
    for until, clear in _LOOKS:
        for j in range(tried, until):
            point = _shaken(native, _FAR, seed + 1 + j)
            # a point outside the domain tells nothing
            with suppress(Exception):
                seen.add(_apart(gradient_at(model, point, budget), gradient_at(twin, _wide(point, twin), budget)))
        tried = until
        if seen.points <= _LEAST:
            # nothing is known of the noise: then it is taken to be as large as what repeats itself
            return {n: _soft(d, (1 + clear) * allowed[n]) for n, d in apart.items()}
        mean = seen.mean()
        beyond = {n: _soft(m, allowed[n] + clear * seen.noise(n)) for n, m in mean.items()}
        open_ = any((np.abs(m) > allowed[n]).any() for n, m in mean.items())
        if not open_ or any(b.any() for b in beyond.values()):
            break
    return beyond


def _moved(native: NamedArrays, twin: Model, reference: Gradients, budget: Budget, seed: int) -> dict[str, Array]:
    """How far the twin's gradient moves with the last place of the native parameters, by entry: its conditioning."""
    # up or down at random; all outward, since a constant in the loss moves them together
    points = [_shaken(native, 1.0, s) for s in (None, seed)]
    there = [_apart(gradient_at(twin, _wide(point, twin), budget), reference) for point in points]
    return {n: np.maximum(np.abs(there[0][n]), np.abs(there[1][n])) for n in there[0]}


def _shaken(native: NamedArrays, far: float, seed: int | None) -> dict[str, Array]:
    """Parameters moved by about so many units in the last place, up or down; without a seed all outward."""
    moved = {}
    for i, (name, p) in enumerate(native.items()):
        rng = np.random.default_rng([seed or 0, i, 3])
        signs = np.sign(p) if seed is None else rng.choice(np.array([-1.0, 1.0]), p.shape)
        length = far * rng.uniform(0.5, 1.5, p.shape) if far > 1 else far
        moved[name] = np.asarray(p + signs * length * np.spacing(np.abs(p)), p.dtype)
    return moved


def _wide(parameters: NamedArrays, twin: Model) -> dict[str, Array]:
    """The same numbers in the twin's dtypes."""
    return {name: parameters[name].astype(p.dtype) for name, p in twin.parameters().items()}


def _apart(one: Gradients, other: Gradients) -> dict[str, Array]:
    """The difference by tensor, float64; a missing gradient counts as zero."""
    pairs = {name: (g, other.get(name)) for name, g in one.items()}
    return {
        name: np.asarray(0.0 if g is None else g, np.float64) - np.asarray(0.0 if h is None else h, np.float64)
        for name, (g, h) in pairs.items()
    }


def _repeating(native: NamedArrays, gradients: Gradients, moved: dict[str, Array]) -> dict[str, Array]:
    """How much rounding may repeat itself, by entry."""
    wide = {n: np.asarray(g, np.float64) for n, g in gradients.items() if g is not None and np.isfinite(g).all()}
    unit = max((eps(g.dtype) for g in gradients.values() if g is not None), default=0.0)
    lengths = plan.scales({n: native[n] for n in gradients})
    whole = float(np.sqrt(sum(np.square(g * lengths[n]).sum() for n, g in wide.items())))
    allowed = {}
    for name in gradients:
        g, m = np.abs(wide.get(name, np.zeros(()))), moved[name]
        flat = _BIAS * (g + _rms(g)) + _WHOLE * whole / lengths[name]
        allowed[name] = unit * flat + _CONDITION * np.maximum(m, _rms(m))
    return allowed


def _soft(x: Array, allowed: Array) -> Array:
    """What of x is beyond, towards zero."""
    return np.asarray(np.sign(x) * np.maximum(np.abs(x) - allowed, 0.0))


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
