"""What a loss looks like near the base point, from the values that its slope was read from: kink, jump, plateau."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array
from gradaudit.numeric.fit import Levels, Series, candidates, choose

__all__ = ["Kink", "Plateau", "from_afar", "jump", "kink", "plateau"]

#: A coefficient counts when it exceeds its bound twice; a jump also thirty noise levels (curvature is no jump).
_SIGNIFICANT = 2.0
_JUMP_NOISES = 30.0
#: |h| persists: the even part over h is the same at the shortest steps that show it, over two decades.
_SEEN = 8.0
_SAME = 0.35
_DECADES = 100.0
#: Values that stand still although the slope seen above would move them by this many noise levels.
_STILL = 8.0
_STILL_LEVELS = 3
#: The slope from afar: three neighbouring levels over two decades, the same within a share of it and of what it is off.
_AFAR_LEVELS, _AFAR_SAME = 3, 0.2
_TOP = float("inf")


@dataclass(frozen=True, slots=True)
class Kink:
    """The coefficient of |h|: the one-sided slopes are value -+ this.

    Attributes:
        slope: half the difference of the one-sided slopes.
        bound: on its error.
        certain: significant, and the same down to the shortest steps that show it.
    """

    slope: float
    bound: float
    certain: bool


@dataclass(frozen=True, slots=True)
class Plateau:
    """The loss stands still near the base point and moves further out.

    Attributes:
        width: the longest step without movement.
        first: the shortest step with movement.
        rise: how far the loss moves there.
    """

    width: float
    first: float
    rise: float


def kink(seen: Levels, near: Levels, eps: float) -> Kink | None:
    """Look for |h| in the even part; None where nothing can be said.

    The fit needs an intercept: the rounding of f(0) would look like a kink otherwise. A kink at the base point goes on
    to the shortest steps of all; many kinks nearby look the same from afar only.

    Args:
        seen: the ladder.
        near: the noise cluster.
        eps: machine epsilon of the loss.
    """
    best = choose(candidates(Series(seen.steps, seen.even, seen.spread, (1, 0, 2, 3, 4), least=2), eps), _TOP)
    if best is None:
        return None
    visible = np.abs(seen.even) > _SEEN * seen.spread
    steps, ratios = seen.steps[visible], (seen.even / seen.steps)[visible]
    shortest = ratios[-3:]
    persists = (
        len(steps) >= 3
        and steps[0] > _DECADES * steps[-1]
        and bool(np.all(np.abs(shortest - best.value) <= _SAME * abs(best.value)))
        and _goes_on(best.value, near)
    )
    return Kink(best.value, best.bound, abs(best.value) > _SIGNIFICANT * best.bound and persists)


def _goes_on(slope: float, near: Levels) -> bool:
    """Whether the coefficient of |h| is the same in the noise cluster, as far as the noise lets it show."""
    square = float(near.steps @ near.steps)
    if square == 0:
        return False
    found, deviation = (
        float(near.even @ near.steps) / square,
        float(near.spread.max(initial=0.0)) / float(np.sqrt(square)),
    )
    return abs(found - slope) <= _SAME * abs(slope) + 6 * deviation and abs(found) > 6 * deviation


def jump(seen: Levels, eps: float) -> bool:
    """Whether the limits from both sides and the value differ: an intercept of the odd or the even part."""
    for part in (seen.odd, seen.even):
        best = choose(candidates(Series(seen.steps, part, seen.spread, (0, 1, 2, 3)), eps), _TOP)
        if best is None:
            continue
        noise = float(seen.spread.min())
        if abs(best.value) > _SIGNIFICANT * best.bound and abs(best.value) > _JUMP_NOISES * noise:
            return True
    return False


def plateau(steps: Array, values: Array, sigma: float) -> Plateau | None:
    """Three levels or more that equal f(0) to the last bit, although the slope seen further out would move them.

    Args:
        steps: all t, 0 among them.
        values: the losses as the model returned them (not corrected for rounded arguments).
        sigma: the noise of one value.
    """
    base = values[steps == 0][0]
    order = np.argsort(np.abs(steps))
    sizes, moves = np.abs(steps[order]), np.abs(values[order] - base)
    finite = np.isfinite(moves) & (sizes > 0)
    sizes, moves = sizes[finite], moves[finite]
    moving = np.flatnonzero(moves > 0)
    if not moving.size or moving[0] < 2 * _STILL_LEVELS:
        return None
    width, first = float(sizes[moving[0] - 1]), float(sizes[moving[0]])
    top = sizes >= first
    slope = float((moves[top] / sizes[top])[moves[top] > 0].min())
    if slope * width <= _STILL * sigma:
        return None
    return Plateau(width, first, float(moves[top][moves[top] > 0].min()))


def from_afar(seen: Levels, slope: float, step: float) -> float:
    """How far the slope from afar may be from that of the shortest steps, where it is as clear; else 0.

    The loss is a staircase there with treads that are not level: an intermediate result that stands still, as the
    1 + erf(x) of a gelu far out, times something that moves. Kinks that near would show in the even part from afar.

    Args:
        seen: the ladder.
        slope: of the shortest steps.
        step: the longest of these.
    """
    far = seen.steps > step
    if np.any(np.abs(seen.even[~far]) > _SEEN * seen.spread[~far]):
        return 0.0  # it bends: that is no tread but a ripple
    steps = seen.steps[far]
    odd, even, noise = ((part[far] / steps) for part in (seen.odd, seen.even, seen.spread))
    for first in range(len(steps) - _AFAR_LEVELS, -1, -1):
        here = slice(first, first + _AFAR_LEVELS)
        if steps[here][0] < _DECADES * steps[here][-1]:
            continue
        middle = float(np.median(odd[here]))
        off = np.abs(odd[here] - middle) + np.abs(even[here]) + noise[here]
        # of a loss that swings within these steps nothing remains from afar, again and again another nothing
        if off.max() <= _AFAR_SAME * min(abs(middle - slope), abs(middle)):
            return float(np.abs(odd[here] - slope).max() + off.max())
    return 0.0
