"""Directional derivatives with error bounds, for many directions at once: one request, at most two more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gradaudit.arrays import Array
from gradaudit.direction import Direction, Point
from gradaudit.numeric import ladder
from gradaudit.numeric.fit import Candidate, Levels, candidates, choose, levels, side, slopes
from gradaudit.numeric.ladder import Ladder
from gradaudit.numeric.noise import cluster_slope, noise_level
from gradaudit.numeric.sampler import Sampler
from gradaudit.numeric.shape import Plateau, jump, kink, plateau

__all__ = ["DerivativeEstimate", "Known", "estimate", "follow_up"]

Status = Literal["converged", "noise-limited", "left the domain", "kink", "jump", "plateau", "low precision inside"]
_ROUNDS = 3
#: Residuals this many times the noise are structure of the loss.
_STRUCTURE = 10.0
#: "Noise" that makes up this share of all movement is a loss that changes faster than the shortest steps.
_UNRESOLVED = 0.05
#: Noise up to this many eps of the loss is rounding.
_ROUNDING = 4.0
#: A follow-up whose residuals exceed the noise by more was taken at the wrong steps.
_FITS = 10.0
#: The values nearest to the base point may contradict the answer by this share of it.
_SLACK = 1e-3
#: In float32 the noise hides kinks so near that only the misfit tells of them; they tilt the slope by up to this much.
_UNSEEN_STRUCTURE = 3.0
#: A line is resolved at this relative bound; further rounds cost more than they show.
_TARGET_DOUBLE, _TARGET_SINGLE = 1e-7, 1e-4
_SINGLE = 1e-12
_TOP = float("inf")
#: Fewer levels than this leave no room for a window with its neighbours.
_ENOUGH = 4
#: A plateau narrower than this is a number format of fewer digits inside the loss, a wider one is rounding on purpose.
_NARROW = 1e-5
#: A number format as narrow as that moves the loss by no more than this share of it.
_DIGITS = 1e-5
#: A kink tilts the slope read from steps that do not see it by less than twice its size, measured.
_TILT = 2.0
#: A hint of a kink below its own bound widens the bound already.
_HINT = 0.3
#: A plateau that ends in steps of this many eps is rounding, of the loss or of intermediate results of the size of 1.
_INTERMEDIATE = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivativeEstimate:
    """d f(p + t v) / dt at t = 0, and how sure we are.

    Attributes:
        value: the derivative, NaN where nothing could be said; at a kink the mean of both sides.
        bound: on its error; infinite where nothing could be said.
        base: the loss at the base point.
        sigma: standard deviation of one evaluation.
        step: the longest step of the window that decided.
        order: of the truncation error there.
        evaluations: losses spent on this line.
        status: converged, noise-limited; left the domain: too few values on either side; kink, jump: not
            differentiable here; plateau: constant here and moving further out; low precision inside: a plateau so
            narrow that it is a number format, the slope is then that of the coarser steps.
        constant: all values were equal to the last bit.
        half_jump: at a kink, the one-sided slopes are value -+ half_jump; otherwise 0.
        still: the loss does not move at all near the base point.
    """

    value: float
    bound: float
    base: float
    sigma: float
    step: float
    order: int
    evaluations: int
    status: Status
    constant: bool
    half_jump: float = 0.0
    still: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What a full estimate teaches about a model: the noise, the base value and a good step."""

    sigma: float
    base: float
    step: float


@dataclass(slots=True)
class _Line:
    direction: Direction
    resolution: float
    ts: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    corrected: list[float] = field(default_factory=list)
    cluster: Array = field(default_factory=lambda: np.zeros(0))

    def arrays(self) -> tuple[Array, Array, Array]:
        return np.array(self.ts), np.array(self.raw), np.array(self.corrected)


def estimate(sampler: Sampler, directions: Sequence[Direction], purpose: str) -> list[DerivativeEstimate]:
    """Full estimates, 21 evaluations a direction in the first round, in one request for all of them.

    Raises:
        Stop: the budget is spent.
    """
    steps = Ladder(sampler.eps)
    lines = [_Line(d, sampler.resolution(d)) for d in directions]
    wanted = []
    for line in lines:
        line.cluster = ladder.cluster(steps, line.resolution)
        wanted.append(np.concatenate([[0.0], ladder.first(steps, line.resolution), line.cluster]))
    _extend(sampler, lines, wanted, purpose)
    tops = [max(w) for w in wanted]
    for _ in range(_ROUNDS - 1):
        pairs = [(line, _further(line, top, steps, sampler)) for line, top in zip(lines, tops, strict=True)]
        open_lines = [(line, more) for line, more in pairs if len(more)]
        _extend(sampler, [line for line, _ in open_lines], [more for _, more in open_lines], purpose)
    return [_result(line, top, sampler) for line, top in zip(lines, tops, strict=True)]


def follow_up(
    sampler: Sampler, directions: Sequence[Direction], known: Known, purpose: str
) -> list[DerivativeEstimate]:
    """Cheaper estimates of further directions of a model whose noise and good step are known: 8 evaluations each.

    Raises:
        Stop: the budget is spent.
    """
    steps = Ladder(sampler.eps)
    lines = [_Line(d, sampler.resolution(d)) for d in directions]
    wanted = [ladder.follow_up(steps, known.step) for _ in lines]
    _extend(sampler, lines, wanted, purpose)
    return [_result(line, float("inf"), sampler, known) for line in lines]


def _extend(sampler: Sampler, lines: Sequence[_Line], wanted: Sequence[Array], purpose: str) -> None:
    points = [Point(line.direction, float(t)) for line, ts in zip(lines, wanted, strict=True) for t in ts]
    if not points:
        return
    raw, corrections = sampler.values(points, purpose)
    start = 0
    for line, ts in zip(lines, wanted, strict=True):
        stop = start + len(ts)
        line.ts += ts.tolist()
        line.raw += raw[start:stop].tolist()
        line.corrected += (raw[start:stop] - corrections[start:stop]).tolist()
        start = stop


@dataclass(slots=True)
class _View:
    """A line's values, scaled, split and fitted."""

    scale: float
    base: float
    sigma: float
    seen: Levels
    best: Candidate | None
    lost: bool
    ts: Array
    raw: Array
    near: Array
    cluster: tuple[float, float]

    @property
    def contradiction(self) -> float:
        """How far the slope of the values nearest to the base point, with its noise, lies outside the bound; or 0.

        A loss that bends within the shortest steps of the ladder, or a staircase seen from afar, shows only here.
        """
        if self.best is None:
            return 0.0
        slope, deviation = self.cluster
        reach = abs(slope - self.best.value) + 6 * deviation
        allowed = self.best.bound + 12 * deviation + _SLACK * abs(self.best.value)
        return reach if reach > allowed else 0.0

    @property
    def shortest(self) -> float:
        """The shortest step that saw a value on either side, else the shortest tried."""
        seen = np.isfinite(self.raw) & (self.ts != 0) & ~self.near
        tried = seen if seen.any() else (self.ts != 0) & ~self.near
        return float(np.abs(self.ts[tried]).min())


def _view(line: _Line, top: float, sampler: Sampler, known: Known | None = None) -> _View:
    eps, digits = sampler.eps, sampler.digits
    ts, raw, corrected = line.arrays()
    base = known.base if known is not None else float(corrected[ts == 0][0])
    # a common power of two keeps losses of 1e-30 and 1e30 away from the ends of the range
    scale = 2.0 ** -np.floor(np.log2(abs(base))) if base != 0 and np.isfinite(base) else 1.0
    near = np.isin(ts, line.cluster)
    if known is not None:
        sigma = known.sigma * scale
    else:
        cluster = near | (ts == 0)
        sigma = noise_level((ts[cluster], corrected[cluster] * scale), raw * scale, base * scale, digits)
        sigma = max(sigma, _rounded_inside(ts, raw, base, digits) * scale)
    far = ~near & (ts != 0)
    steps, values = ts[far], corrected[far] * scale
    seen = levels(steps, values, base * scale, sigma, digits)
    rounding = _ROUNDING * eps * abs(base)
    smooth = known is not None or sigma <= scale * max(rounding, _UNRESOLVED * float(np.nanstd(raw)))
    best = choose(candidates(slopes(seen), eps), top) if smooth else None
    lost = bool(~np.isfinite(corrected).all())
    if lost and len(seen.steps) < _ENOUGH and smooth:
        sides = [choose(candidates(side(steps, values, base * scale, sigma, digits, s), eps), top) for s in (1, -1)]
        best = min((c for c in (best, *sides) if c is not None), key=lambda c: c.bound, default=None)
    near_line = cluster_slope(ts[near], corrected[near] * scale, sigma)
    return _View(scale, base, sigma, seen, best, lost, ts, raw, near, near_line)


def _rounded_inside(ts: Array, raw: Array, base: float, eps: float) -> float:
    """Noise of an intermediate result of the size of 1 in a smaller loss: small steps do not move it at all."""
    flat = plateau(ts, raw, 0.0)
    if flat is None:
        return 0.0
    unit = eps * max(1.0, abs(base))
    return flat.rise / 2 if flat.rise <= _INTERMEDIATE * unit else 0.0


def _further(line: _Line, top: float, steps: Ladder, sampler: Sampler) -> Array:
    """Where the next round should look, if this line is not resolved."""
    view = _view(line, top, sampler)
    best, seen = view.best, view.seen
    target = _TARGET_DOUBLE if sampler.eps < _SINGLE else _TARGET_SINGLE
    if best is not None and best.bound <= target * abs(best.value):
        return np.zeros(0)
    if view.lost and len(seen.steps) < _ENOUGH:
        # levels were lost at the edge of the domain: look nearer
        return ladder.below(steps, float(seen.steps[-1] if len(seen.steps) else view.shortest), line.resolution)
    if best is None:
        return np.zeros(0)
    if best.misfit > _STRUCTURE or view.contradiction:
        # what the fit leaves over is no noise: the loss bends within the steps
        nearer = ladder.below(steps, float(seen.steps[-1]), line.resolution)
        if len(nearer):
            return nearer
    noisy = 6 * best.noise + 3 * best.unseen > 3 * best.change
    if noisy and best.start == 0:
        return ladder.above(best.step)
    if not noisy and best.start >= len(seen.steps) - _ENOUGH:
        return ladder.below(steps, float(seen.steps[-1]), line.resolution)
    above = max(best.start - 1, 0)
    return ladder.between(float(seen.steps[above + 1]), float(seen.steps[above]))


def _result(line: _Line, top: float, sampler: Sampler, known: Known | None = None) -> DerivativeEstimate:
    eps = sampler.eps
    view = _view(line, top, sampler, known)
    best = view.best
    if best is None:
        return DerivativeEstimate(
            value=float("nan"),
            bound=float("inf"),
            base=view.base,
            sigma=view.sigma / view.scale,
            step=float("nan"),
            order=0,
            evaluations=len(line.ts),
            status="left the domain" if view.lost else "noise-limited",
            constant=False,
        )
    found = DerivativeEstimate(
        value=best.value / view.scale,
        bound=best.bound / view.scale,
        base=view.base,
        sigma=view.sigma / view.scale,
        step=best.step,
        order=2 * best.terms,
        evaluations=len(line.ts),
        status="converged" if best.bound <= 1e-3 * abs(best.value) else "noise-limited",
        constant=bool(np.all(view.raw == view.raw[0])),
    )
    if known is not None:
        # a follow-up has no short steps to judge by; where its few levels do not fit, they were the wrong ones
        return replace(found, bound=float("inf"), status="noise-limited") if best.misfit > _FITS else found
    bound = max(found.bound, view.contradiction / view.scale)
    if eps > _SINGLE and best.misfit > _STRUCTURE:
        bound *= _UNSEEN_STRUCTURE
    return _shaped(replace(found, bound=bound), view, eps)


def _shaped(found: DerivativeEstimate, view: _View, eps: float) -> DerivativeEstimate:
    """The same estimate, knowing whether the loss is differentiable here at all."""
    flat = plateau(view.ts, view.raw, view.sigma / view.scale)
    if flat is not None:
        return _on_a_plateau(found, view, flat, eps)
    if len(view.seen.steps) < _ENOUGH:
        return found
    if jump(view.seen, eps):
        return replace(found, status="jump")
    bend = kink(view.seen, eps)
    if bend is None:
        return found
    slope, bound = abs(bend.slope) / view.scale, bend.bound / view.scale
    if bend.certain:
        return replace(found, status="kink", half_jump=slope, bound=found.bound + bound)
    return replace(found, bound=found.bound + _TILT * slope) if slope > _HINT * bound else found


def _on_a_plateau(found: DerivativeEstimate, view: _View, flat: Plateau, eps: float) -> DerivativeEstimate:
    if flat.first > _NARROW or flat.rise > _DIGITS * max(1.0, abs(view.base)):
        bound = 6 * view.sigma / view.scale / flat.width
        return replace(found, value=0.0, bound=bound, status="plateau", still=True)
    moving = (np.abs(view.ts) >= flat.first) & (view.ts != 0)
    sigma = flat.rise / 2
    coarse = levels(view.ts[moving], view.raw[moving], view.base, sigma, eps)
    best = choose(candidates(slopes(coarse), eps), _TOP)
    if best is None:
        return replace(found, value=float("nan"), bound=float("inf"), status="low precision inside")
    return replace(found, value=best.value, bound=best.bound, sigma=sigma, status="low precision inside")
