"""One line of losses, t -> f(p + t v): its samples, and how they look when scaled, split into parts and fitted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gradaudit.arrays import Array
from gradaudit.direction import Direction
from gradaudit.numeric.fit import Candidate, Levels, candidates, choose, levels, side, slopes
from gradaudit.numeric.noise import cluster_slope, noise_level
from gradaudit.numeric.sampler import Sampler
from gradaudit.numeric.shape import plateau

__all__ = ["ENOUGH", "Known", "Line", "View", "view"]

#: Fewer levels than this leave no room for a window with its neighbours.
ENOUGH = 4
#: "Noise" that makes up this share of all movement is a loss that changes faster than the shortest steps.
_UNRESOLVED = 0.05
#: Noise up to this many eps of the loss is rounding.
_ROUNDING = 4.0
#: The values nearest to the base point may contradict the answer by this share of it.
_SLACK = 1e-3
#: A plateau that ends in steps of this many eps is rounding, of the loss or of intermediate results of the size of 1.
_INTERMEDIATE = 100.0


@dataclass(frozen=True, slots=True)
class Known:
    """What a full estimate teaches about a model: the noise, the base value and a good step."""

    sigma: float
    base: float
    step: float


@dataclass(slots=True)
class Line:
    """What is known of a line, extended by rounds.

    Attributes:
        direction: v.
        resolution: the step that moves a typical parameter by one unit in the last place.
        ts: steps.
        raw: losses there.
        corrected: losses less the effect of rounded arguments.
        cluster: the steps of the noise cluster.
        seen: how it looked with so many samples.
    """

    direction: Direction
    resolution: float
    ts: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    corrected: list[float] = field(default_factory=list)
    cluster: Array = field(default_factory=lambda: np.zeros(0))
    seen: dict[int, View] = field(default_factory=dict)

    def arrays(self) -> tuple[Array, Array, Array]:
        """Steps, losses and corrected losses."""
        return np.array(self.ts), np.array(self.raw), np.array(self.corrected)


@dataclass(slots=True)
class View:
    """A line's values, times ``scale``, split into levels and fitted; ``near`` marks the noise cluster."""

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
    close: Levels

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


def view(line: Line, top: float, sampler: Sampler, known: Known | None = None) -> View:
    """Look at a line; with ``known``, base value and noise are those of another direction of the same model."""
    if len(line.ts) not in line.seen:
        line.seen[len(line.ts)] = _view(line, top, sampler, known)
    return line.seen[len(line.ts)]


def _view(line: Line, top: float, sampler: Sampler, known: Known | None) -> View:
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
    # one number over and over has digits of its own, which say nothing of how it is rounded
    constant = bool(np.all(raw == raw[0]))
    smooth = known is not None or constant or sigma <= scale * max(rounding, _UNRESOLVED * float(np.nanstd(raw)))
    best = choose(candidates(slopes(seen), eps), top) if smooth else None
    lost = bool(~np.isfinite(corrected).all())
    if lost and len(seen.steps) < ENOUGH and smooth:
        sides = [choose(candidates(side(steps, values, base * scale, sigma, digits, s), eps), top) for s in (1, -1)]
        best = min((c for c in (best, *sides) if c is not None), key=lambda c: c.bound, default=None)
    near_line = cluster_slope(ts[near], corrected[near] * scale, sigma)
    close = levels(ts[near], corrected[near] * scale, base * scale, sigma, digits)
    return View(scale, base, sigma, seen, best, lost, ts, raw, near, near_line, close)


def _rounded_inside(ts: Array, raw: Array, base: float, eps: float) -> float:
    """Noise of an intermediate result of the size of 1 in a smaller loss: small steps do not move it at all."""
    flat = plateau(ts, raw, 0.0)
    if flat is None:
        return 0.0
    unit = eps * max(1.0, abs(base))
    return flat.rise / 2 if flat.rise <= _INTERMEDIATE * unit else 0.0
