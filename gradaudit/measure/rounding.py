"""A float32 gradient beside that of its float64 twin: what repeats itself at other points is no rounding.

``D_j`` = native gradient minus the twin's at the j-th point, the base point and points near it. An error of the code is
a smooth function of the parameters: it is the same in all of them. Rounding is drawn anew at every point: the mean of n
differences has its standard deviation over the square root of n (Student 1908; that of the whole tensor is added, since
nine numbers show a standard deviation badly).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, eps
from gradaudit.measure import plan, related
from gradaudit.measure.baseline import gradient_at
from gradaudit.measure.vanished import but_vanished
from gradaudit.numeric.budget import Budget
from gradaudit.protocols import Model

__all__ = ["Rounding", "beside_own", "beyond_rounding"]

#: Some rounding repeats itself: that of functions and of sums of data (twice the 80 eps measured of functions); stored
#: constants are off by half a unit in the last place, which moves a gradient as much as its parameters' last places do.
_BIAS = 160.0
_CONDITION = 2.0
#: Rounding is another one where the gradient moves by so many times the difference; an error is about the same where
#: it moves by this share. The points lie so far away (units in the last place) at least and at most.
_OTHER, _SAME = 64.0, 0.1
_NEAREST, _FARTHEST = 2.0**6, 2.0**15
#: After so many points a mean of differences is no rounding beyond so many of its standard deviations: with 9 and 17
#: numbers that happens by chance with 2e-6 and 1e-7.
_LOOKS = ((8, 12.0), (16, 9.0))
#: Of the first points so many must be usable.
_LEAST = 4
#: An entry that moves less than so many times its difference keeps its rounding (1 - tanh^2, far out). That is so many
#: eps of the intermediate results (measured: 1.6 times, 1.2 eps). They are as large as the whole model's gradient; an
#: entry of less than so many times what the loss's own rounding makes comes from some as large as the loss, but a large
#: offset excuses no more than this share of a tensor.
_STILL = 4.0
_INTERMEDIATE, _SATURATED, _OFFSET = 2.0, 16.0, 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Rounding:
    """What of a float32 gradient's difference to its twin's is none.

    Attributes:
        excess: by tensor and entry, float64: the part that rounding does not account for.
        related: tensors one of which is wrong; of several it cannot be told which, see `gradaudit.measure.related`.
    """

    excess: dict[str, Array]
    related: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Differences:
    """D_j summed over points, by tensor; how far the twin's gradient moved at most; each D_j, where entries are few."""

    total: dict[str, Array]
    squares: dict[str, Array]
    moves: dict[str, Array]
    each: list[tuple[Array, Array]]
    points: int = 1

    def add(self, there: dict[str, Array], moves: dict[str, Array]) -> None:
        if all(np.isfinite(there[n]).all() for n in self.total):
            self.total = {n: t + there[n] for n, t in self.total.items()}
            self.squares = {n: s + there[n] ** 2 for n, s in self.squares.items()}
            self.moves = {n: np.maximum(m, np.abs(moves[n])) for n, m in self.moves.items()}
            self.points += 1
            if self.each:
                self.each.append((_flat(there), _flat(moves)))

    def mean(self) -> dict[str, Array]:
        return {n: t / self.points for n, t in self.total.items()}

    def noise(self, name: str) -> Array:
        """The standard deviation of the mean."""
        square = self.squares[name] - self.total[name] ** 2 / self.points
        variance = np.maximum(square, 0.0) / (self.points - 1)
        return np.asarray(np.sqrt((variance + variance.mean()) / self.points))


def beyond_rounding(
    models: tuple[Model, Model],
    gradients: Gradients,
    reference: Gradients,
    loss: Scalar,
    budget: Budget,
    seed: int,
    *,
    narrow: float = 0.0,
) -> Rounding:
    """The part of the difference to the twin that rounding does not account for.

    Args:
        models: the native one and its float64 twin.
        gradients: of the native model at its base point, those under audit; a missing one counts as zero.
        reference: of the twin there.
        loss: there.
        budget: up to two gradients are charged to it; where differences are larger than what repeats, 34 at most.
            So they are where a gradient of few entries is amplified rounding.
        seed: of the points.
        narrow: machine epsilon of a narrower format that parts of the loss are meant to compute in.
    """
    model, twin = models
    native = model.parameters()
    given = [n for n, g in gradients.items() if g is not None or reference.get(n) is not None]
    apart = {n: d for n, d in _apart(gradients, reference).items() if n in given and np.isfinite(d).all()}
    entries = _entries(apart, reference), _entries(apart, plan.scales({n: native[n] for n in apart}))
    few = related.amplified(_flat(apart), *entries)
    unit = _unit(gradients, narrow)
    least: dict[str, Array] = {}
    # each look at the conditioning excuses more, and most gradients need none or one
    for moved in _moved(native, twin, reference, budget, seed):
        always, still = _repeating(native, gradients, moved, abs(float(loss)), unit)
        least = least or always
        open_ = [n for n, d in apart.items() if (np.abs(d) > always[n]).any()]
        if not open_ and not few:
            return Rounding({n: np.zeros(d.shape) for n, d in apart.items()})
    far = max(_far(apart[n], reference[n], moved[n]) for n in open_ or apart)
    each = [(_flat(apart), np.zeros(len(entries[0])))] if few else []
    seen = _Differences(apart, {n: d * d for n, d in apart.items()}, dict.fromkeys(apart, np.zeros(())), each)
    beyond: dict[str, Array] = {}
    tried = 0
    for until, clear in _LOOKS:
        for j in range(tried, until):
            point = _shaken(native, far, seed + 1 + j)
            # a point outside the domain tells nothing
            with suppress(Exception):
                exact = gradient_at(twin, _wide(point, twin), budget)
                seen.add(_apart(gradient_at(model, point, budget), exact), _apart(exact, reference))
        tried = until
        if seen.points <= _LEAST:
            # nothing is known of the noise: then it is taken to be as large as what repeats itself
            return Rounding({n: _soft(d, (1 + clear) * always[n] + still[n]) for n, d in apart.items()})
        mean = seen.mean()
        allowed = {n: always[n] + still[n] * (seen.moves[n] < _STILL * np.abs(m)) for n, m in mean.items()}
        beyond = {n: _soft(m, allowed[n] + clear * seen.noise(n)) for n, m in mean.items()}
        repeats = all((np.abs(m) <= allowed[n]).all() for n, m in mean.items())
        if any(b.any() for b in beyond.values()):
            return Rounding(
                but_vanished(beyond, (gradients, reference), loss, twin, native, budget, seed=seed, unit=unit)
            )
        if repeats and not few:
            break
    if not few:
        return Rounding(beyond)
    each_apart, moves = zip(*seen.each, strict=True)
    last_places = np.array(moves[1:]) / far
    broken = related.broken(each_apart, last_places, *entries, repeating=_entries(apart, least), unit=unit)
    return Rounding(beyond, tuple(apart) if broken else ())


def beside_own(excess: dict[str, Array], gradients: Gradients, own: Gradients, *, narrow: float) -> dict[str, Array]:
    """What is beyond rounding of a gradient that comes another way than the twin's, from one that comes the same way.

    Points nearby show that there is an error, and that rounding does not make it; but an error moves from point to
    point as well, so what they leave of it may be little. The other gradient, in the same precision, has the rounding,
    and not the error.

    Args:
        excess: as `beyond_rounding` found it; what has none keeps none.
        gradients: under audit.
        own: the other one.
        narrow: machine epsilon of a narrower format that parts of the loss are meant to compute in.
    """
    unit, found = _unit(gradients, narrow), dict(excess)
    for name, apart in _apart(gradients, own).items():
        if name in excess and excess[name].any() and np.isfinite(apart).all():
            g = np.abs(np.asarray(0.0 if own[name] is None else own[name], np.float64))
            # sums in another order round otherwise
            told = np.where(np.abs(apart) > _BIAS * unit * (g + _rms(g)), apart, 0.0)
            # none: the rounding of both is beyond what it should be, and the points know more
            found[name] = told if told.any() else excess[name]
    return found


def _moved(
    native: NamedArrays, twin: Model, reference: Gradients, budget: Budget, seed: int
) -> Iterator[dict[str, Array]]:
    """How far the twin's gradient moves with the last place of the native parameters, by entry: its conditioning.

    After no look, one and two, a gradient each.
    """
    moved: dict[str, Array] = dict.fromkeys(native, np.zeros(()))
    yield moved
    # up or down at random; all outward, since a constant in the loss moves them together
    for outward in (None, seed):
        there = _apart(gradient_at(twin, _wide(_shaken(native, 1.0, outward), twin), budget), reference)
        moved = {n: np.maximum(moved[n], np.abs(d)) for n, d in there.items()}
        yield moved


def _far(apart: Array, reference: Array | None, moved: Array) -> float:
    """How many units in the last place away rounding is another one, and an error still the same."""
    largest = float(np.abs(apart).max())
    size = largest if reference is None else max(largest, _rms(reference))
    wanted = min(_OTHER * largest, _SAME * size)
    unit = _rms(moved)
    return float(np.clip(wanted / unit, _NEAREST, _FARTHEST)) if unit > 0 else _FARTHEST


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


def _repeating(
    native: NamedArrays, gradients: Gradients, moved: dict[str, Array], loss: float, unit: float
) -> tuple[dict[str, Array], dict[str, Array]]:
    """How much rounding may repeat itself, by entry: everywhere, and in addition where the points do not move it."""
    wide = {n: np.asarray(g, np.float64) for n, g in gradients.items() if g is not None and np.isfinite(g).all()}
    lengths = plan.scales({n: native[n] for n in gradients})
    whole = float(np.sqrt(sum(np.square(g * lengths[n]).sum() for n, g in wide.items())))
    always, still = {}, {}
    for name in gradients:
        g, m = np.abs(wide.get(name, np.zeros(()))), moved[name]
        always[name] = _BIAS * unit * (g + _rms(g)) + _CONDITION * np.maximum(m, _rms(m))
        by_loss = _INTERMEDIATE * unit * loss / lengths[name]
        saturated = np.where(g < _SATURATED * by_loss, np.minimum(by_loss, _OFFSET * _rms(g)), 0.0)
        still[name] = _INTERMEDIATE * unit * whole / lengths[name] + saturated
    return always, still


def _unit(gradients: Gradients, narrow: float) -> float:
    """Machine epsilon of the coarsest gradient, or of the narrower format."""
    return max(narrow, max((eps(g.dtype) for g in gradients.values() if g is not None), default=0.0))


def _flat(tensors: Mapping[str, Array]) -> Array:
    """All their entries, one tensor after the other."""
    return np.concatenate([np.ravel(x) for x in tensors.values()]) if tensors else np.zeros(0)


def _entries(like: Mapping[str, Array], of: Mapping[str, Array | float | None]) -> Array:
    """The same for others of these tensors, where one number may stand for all, and None for zeros."""
    found = {name: np.float64(0) if (x := of[name]) is None else np.asarray(x, np.float64) for name in like}
    return _flat({name: np.broadcast_to(x, like[name].shape) for name, x in found.items()})


def _soft(x: Array, allowed: Array) -> Array:
    """What of x is beyond, towards zero."""
    return np.asarray(np.sign(x) * np.maximum(np.abs(x) - allowed, 0.0))


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
