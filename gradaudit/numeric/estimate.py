"""Directional derivatives with error bounds, for many directions at once: one request, at most two more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gradaudit.arrays import Array
from gradaudit.direction import Direction, Point
from gradaudit.numeric import ladder
from gradaudit.numeric.fit import Candidate, Levels, candidates, choose, levels
from gradaudit.numeric.ladder import Ladder
from gradaudit.numeric.noise import noise_level
from gradaudit.numeric.sampler import Sampler

__all__ = ["DerivativeEstimate", "Known", "estimate", "follow_up"]

Status = Literal["converged", "noise-limited", "left the domain"]
_ROUNDS = 3
#: Fewer levels than this leave no room for a window with its neighbours.
_ENOUGH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivativeEstimate:
    """d f(p + t v) / dt at t = 0, and how sure we are.

    Attributes:
        value: the derivative, NaN where nothing could be said.
        bound: on its error; infinite where nothing could be said.
        base: the loss at the base point.
        sigma: standard deviation of one evaluation.
        step: the longest step of the window that decided.
        order: of the truncation error there.
        evaluations: losses spent on this line.
        status: converged, noise-limited, or left the domain.
        constant: all values were equal to the last bit.
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
        pairs = [(line, _further(line, top, steps, sampler.eps)) for line, top in zip(lines, tops, strict=True)]
        open_lines = [(line, more) for line, more in pairs if len(more)]
        _extend(sampler, [line for line, _ in open_lines], [more for _, more in open_lines], purpose)
    return [_result(line, top, sampler.eps) for line, top in zip(lines, tops, strict=True)]


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
    return [_result(line, float("inf"), sampler.eps, known) for line in lines]


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


def _fit(line: _Line, top: float, eps: float, known: Known | None) -> tuple[Candidate | None, float, Levels]:
    ts, raw, corrected = line.arrays()
    base = known.base if known is not None else float(corrected[ts == 0][0])
    # a common power of two keeps losses of 1e-30 and 1e30 away from the ends of the range
    scale = 2.0 ** -np.floor(np.log2(abs(base))) if base != 0 and np.isfinite(base) else 1.0
    if known is not None:
        sigma = known.sigma * scale
    else:
        near = np.isin(ts, line.cluster) | (ts == 0)
        sigma = noise_level((ts[near], corrected[near] * scale), raw * scale, base * scale, eps)
    far = ~np.isin(ts, line.cluster) & (ts != 0)
    seen = levels(ts[far], corrected[far] * scale, base * scale, sigma, eps)
    best = choose(candidates(seen, eps), top) if np.isfinite(sigma) else None
    return best, scale, seen


def _further(line: _Line, top: float, steps: Ladder, eps: float) -> Array:
    """Where the next round should look, if this line is not resolved."""
    best, _, seen = _fit(line, top, eps, None)
    if best is None:
        # levels were lost at the edge of the domain: look nearer
        few = 0 < len(seen.steps) < _ENOUGH
        return ladder.below(steps, float(seen.steps[-1]), line.resolution) if few else np.zeros(0)
    target = 1e-7 if steps.lowest < 2.0**-40 else 1e-4
    if best.bound <= target * abs(best.value):
        return np.zeros(0)
    noisy = 6 * best.noise + 3 * best.unseen > 3 * best.change
    if noisy and best.start == 0:
        return ladder.above(best.step)
    if not noisy and best.start >= len(seen.steps) - _ENOUGH:
        return ladder.below(steps, float(seen.steps[-1]), line.resolution)
    above = max(best.start - 1, 0)
    return ladder.between(float(seen.steps[above + 1]), float(seen.steps[above]))


def _result(line: _Line, top: float, eps: float, known: Known | None = None) -> DerivativeEstimate:
    best, scale, seen = _fit(line, top, eps, known)
    ts, raw, corrected = line.arrays()
    base = known.base if known is not None else float(corrected[ts == 0][0])
    if best is None:
        return DerivativeEstimate(
            value=float("nan"),
            bound=float("inf"),
            base=base,
            sigma=known.sigma if known is not None else float("nan"),
            step=float("nan"),
            order=0,
            evaluations=len(line.ts),
            status="left the domain" if not np.isfinite(corrected).all() else "noise-limited",
            constant=False,
        )
    return DerivativeEstimate(
        value=best.value / scale,
        bound=best.bound / scale,
        base=base,
        sigma=float(seen.spread.min() * np.sqrt(2) / scale),
        step=best.step,
        order=2 * best.terms,
        evaluations=len(line.ts),
        status="converged" if best.bound <= 1e-3 * abs(best.value) else "noise-limited",
        constant=bool(np.all(raw == raw[0])),
    )
