"""Directional derivatives with error bounds, for many directions at once: one request, at most two more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from gradaudit.arrays import Array
from gradaudit.direction import Direction, Point
from gradaudit.numeric import ladder
from gradaudit.numeric.fit import Levels, candidates, choose, levels, slopes
from gradaudit.numeric.ladder import Ladder
from gradaudit.numeric.line import ENOUGH, Known, Line, View, view
from gradaudit.numeric.sampler import Sampler
from gradaudit.numeric.shape import Plateau, from_afar, jump, kink, plateau

__all__ = ["DerivativeEstimate", "Known", "estimate", "follow_up"]

Status = Literal["converged", "noise-limited", "left the domain", "kink", "jump", "plateau", "low precision inside"]
_ROUNDS = 3
#: Residuals this many times the noise are structure of the loss.
_STRUCTURE = 10.0
#: A follow-up whose residuals exceed the noise by more was taken at the wrong steps.
_FITS = 10.0
#: In float32 the noise hides kinks so near that only the misfit tells of them; they tilt the slope by up to this much.
_UNSEEN_STRUCTURE = 3.0
#: A line is resolved at this relative bound; further rounds cost more than they show.
_TARGET_DOUBLE, _TARGET_SINGLE = 1.25e-7, 1e-4
_SINGLE = 1e-12
_TOP = float("inf")
#: A plateau narrower than this is a number format of fewer digits inside the loss, a wider one is rounding on purpose.
_NARROW = 1e-5
#: A number format as narrow as that moves the loss by no more than this share of it.
_DIGITS = 1e-5
#: What stands still may be an intermediate result of the size of 1, or of the loss, as 1 + erf(x): its noise in eps.
_INTERMEDIATE = 0.5
#: A kink tilts the slope read from steps that do not see it by less than twice its size, measured.
_TILT = 2.0
#: A hint of a kink below its own bound widens the bound already.
_HINT = 0.3
#: So many of the shortest steps of a follow-up must not show a kink; noise, six standard deviations with the base's.
_TWO, _NOISE = 2, 10.0


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
        nearby: the largest size of the loss within that window.
        bend: of a follow-up, what its shortest steps allow for ``half_jump``, which it does not look for.
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
    nearby: float = 0.0
    bend: float = _TOP

    @property
    def smooth(self) -> bool:
        """Nothing was seen that makes the loss other than smooth here."""
        return self.status in ("converged", "noise-limited")


def estimate(sampler: Sampler, directions: Sequence[Direction], purpose: str) -> list[DerivativeEstimate]:
    """Full estimates, 21 evaluations a direction in the first round, in one request for all of them.

    Raises:
        Stop: the budget is spent.
    """
    steps = Ladder(sampler.eps)
    lines = [Line(d, sampler.resolution(d)) for d in directions]
    wanted = []
    for line in lines:
        line.cluster = ladder.cluster(steps, line.resolution)
        wanted.append(np.concatenate([[0.0], ladder.first(steps, line.resolution), line.cluster]))
    _extend(sampler, lines, wanted, purpose)
    tops = [max(w) for w in wanted]
    looks = [view(line, top, sampler) for line, top in zip(lines, tops, strict=True)]
    for _ in range(_ROUNDS - 1):
        wanted = [_further(line, looked, steps, sampler.eps) for line, looked in zip(lines, looks, strict=True)]
        _extend(sampler, lines, wanted, purpose)
        looks = [
            view(line, top, sampler) if len(more) else looked
            for line, top, more, looked in zip(lines, tops, wanted, looks, strict=True)
        ]
    return [_result(line, looked, sampler.eps) for line, looked in zip(lines, looks, strict=True)]


def follow_up(
    sampler: Sampler, directions: Sequence[Direction], known: Known, purpose: str
) -> list[DerivativeEstimate]:
    """Cheaper estimates of further directions of a model whose noise and good step are known: 8 evaluations each.

    Raises:
        Stop: the budget is spent.
    """
    steps = Ladder(sampler.eps)
    lines = [Line(d, sampler.resolution(d)) for d in directions]
    wanted = [ladder.follow_up(steps, known.step) for _ in lines]
    _extend(sampler, lines, wanted, purpose)
    return [_result(line, view(line, steps.top, sampler, known), sampler.eps, known) for line in lines]


def _extend(sampler: Sampler, lines: Sequence[Line], wanted: Sequence[Array], purpose: str) -> None:
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


def _further(line: Line, looked: View, steps: Ladder, eps: float) -> Array:
    """Where the next round should look, if this line is not resolved."""
    best, seen = looked.best, looked.seen
    target = _TARGET_DOUBLE if eps < _SINGLE else _TARGET_SINGLE
    if best is not None and best.bound <= target * abs(best.value):
        return np.zeros(0)
    if looked.lost and len(seen.steps) < ENOUGH:
        # levels were lost at the edge of the domain: look nearer
        return ladder.below(steps, float(seen.steps[-1] if len(seen.steps) else looked.shortest), line.resolution)
    if best is None:
        return np.zeros(0)
    if best.misfit > _STRUCTURE or looked.contradiction:
        # what the fit leaves over is no noise: the loss bends within the steps
        nearer = ladder.below(steps, float(seen.steps[-1]), line.resolution)
        if len(nearer):
            return nearer
    noisy = 6 * best.noise + 3 * best.unseen > 3 * best.change
    if noisy and best.start == 0:
        return ladder.above(best.step)
    if not noisy and best.start >= len(seen.steps) - ENOUGH:
        return ladder.below(steps, float(seen.steps[-1]), line.resolution)
    above = max(best.start - 1, 0)
    return ladder.between(float(seen.steps[above + 1]), float(seen.steps[above]))


def _result(line: Line, looked: View, eps: float, known: Known | None = None) -> DerivativeEstimate:
    best = looked.best
    if best is None:
        return DerivativeEstimate(
            value=float("nan"),
            bound=float("inf"),
            base=looked.base,
            sigma=looked.sigma / looked.scale,
            step=float("nan"),
            order=0,
            evaluations=len(line.ts),
            status="left the domain" if looked.lost else "noise-limited",
            constant=False,
        )
    found = DerivativeEstimate(
        value=best.value / looked.scale,
        bound=best.bound / looked.scale,
        base=looked.base,
        sigma=looked.sigma / looked.scale,
        step=best.step,
        order=2 * best.terms,
        evaluations=len(line.ts),
        status="converged" if best.bound <= 1e-3 * abs(best.value) else "noise-limited",
        constant=bool(np.all(looked.raw == looked.raw[0])),
        nearby=float(np.abs(looked.raw[np.isfinite(looked.raw) & (np.abs(looked.ts) <= best.step)]).max(initial=0.0)),
    )
    if known is not None:
        # a follow-up has no short steps to judge by; where its few levels do not fit, they were the wrong ones
        if best.misfit > _FITS:
            return replace(found, bound=float("inf"), status="noise-limited")
        return replace(found, bend=_bend(looked.seen) / looked.scale)
    bound = max(found.bound, looked.contradiction / looked.scale)
    if eps > _SINGLE and best.misfit > _STRUCTURE:
        bound *= _UNSEEN_STRUCTURE
    return _shaped(replace(found, bound=bound), looked, eps)


def _bend(seen: Levels) -> float:
    """By how much the one-sided slopes can differ from their mean, as the even part over the two shortest steps tells.

    Curvature may hide a third of a kink in both of them, no more: their steps are five to one.
    """
    if len(seen.steps) < _TWO:
        return _TOP
    allowed = np.abs(seen.even) + _NOISE * seen.spread
    return 1.5 * float((allowed / seen.steps)[-_TWO:].max())


def _shaped(found: DerivativeEstimate, looked: View, eps: float) -> DerivativeEstimate:
    """The same estimate, knowing whether the loss is differentiable here at all."""
    flat = plateau(looked.ts, looked.raw, looked.sigma / looked.scale)
    if flat is not None:
        return _on_a_plateau(found, looked, flat, eps)
    if len(looked.seen.steps) < ENOUGH:
        return found
    if found.step < _NARROW and (off := from_afar(looked.seen, found.value * looked.scale, found.step)):
        return replace(found, bound=found.bound + off / looked.scale)
    if jump(looked.seen, eps):
        return replace(found, status="jump")
    bend = kink(looked.seen, looked.close, eps)
    if bend is None:
        return found
    slope, bound = abs(bend.slope) / looked.scale, bend.bound / looked.scale
    if bend.certain:
        return replace(found, status="kink", half_jump=slope, bound=found.bound + bound)
    return replace(found, bound=found.bound + _TILT * slope) if slope > _HINT * bound else found


def _on_a_plateau(found: DerivativeEstimate, looked: View, flat: Plateau, eps: float) -> DerivativeEstimate:
    if flat.first > _NARROW or flat.rise > _DIGITS * max(1.0, abs(looked.base)):
        sigma = max(found.sigma, _INTERMEDIATE * eps * max(1.0, abs(looked.base)))
        return replace(found, value=0.0, bound=6 * sigma / flat.width, sigma=sigma, status="plateau", still=True)
    moving = (np.abs(looked.ts) >= flat.first) & (looked.ts != 0)
    sigma = flat.rise / 2
    coarse = levels(looked.ts[moving], looked.raw[moving], looked.base, sigma, eps)
    best = choose(candidates(slopes(coarse), eps), _TOP)
    if best is None:
        return replace(found, value=float("nan"), bound=float("inf"), status="low precision inside")
    status: Status = "low precision inside"
    return replace(found, value=best.value, bound=best.bound, sigma=sigma, step=best.step, status=status)
