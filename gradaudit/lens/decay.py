"""How much of a gradient is left out, and how fast what far pairs of steps contribute falls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gradient", "Reference", "counted", "difference", "extrapolated", "lengths", "norms", "rate"]

#: By tensor, each flat.
Gradient: TypeAlias = tuple[NDArray[np.float64], ...]
#: Of all tensors together, then of each.
Norms: TypeAlias = NDArray[np.float64]
#: Which tensors are taken together, (tensors,).
Counted: TypeAlias = NDArray[np.bool_]

#: A tensor is changed by a truncation if it changes by more than so many roundings.
_ROUNDINGS = 1e4


def lengths(limit: int, least: int = 1) -> Iterator[list[int]]:
    """The k that are looked at: 1, 2, 3, 4, then four to a doubling, evenly spaced, from ``least`` to ``limit``.

    Evenly spaced, because the norms of the blocks between them then fall by one factor.
    """
    before, end = 0, 4
    while before < limit:
        width = max(1, end // 8)
        spaced = {*range(before + width, end + 1, width), least, limit}
        if some := sorted(k for k in spaced if max(before + 1, least) <= k <= min(end, limit)):
            yield some
        before, end = end, 2 * end


def norms(gradient: Gradient, counted: Counted | None = None) -> Norms:
    """Euclidean, (1 + tensors,); the first of those that are counted together, or of all."""
    return _together(np.array([float(np.linalg.norm(tensor)) for tensor in gradient]), counted)


def _together(each: Norms, counted: Counted | None) -> Norms:
    return np.array([np.linalg.norm(each if counted is None else each[counted]), *each])


def counted(missing: Norms, whole: Norms, eps: float) -> Counted:
    """Which tensors a truncation changes by more than rounding; all where it changes none.

    A readout's gradient is whole under every truncation that keeps all losses. Taken together with the others it would
    hide what these lack.

    Args:
        missing: the norms of what is left out, (tensors,).
        whole: of the full gradient.
        eps: of the dtype in which they were computed.
    """
    changed = missing > _ROUNDINGS * eps * whole
    return changed if changed.any() else np.ones_like(changed)


def difference(one: Gradient, other: Gradient) -> Gradient:
    """One minus other."""
    return tuple(a - b for a, b in zip(one, other, strict=True))


class Reference(NamedTuple):
    """What is taken for the full gradient, and how far from it that may be, by tensor."""

    gradient: Gradient
    slack: Norms | float = 0.0

    def bias(self, gradient: Gradient, counted: Counted | None = None) -> Norms:
        """``(||g - g_k|| + slack) / (||g|| - slack)``: without slack the bias, with it a bound of it."""
        slack = np.broadcast_to(self.slack, 1 + len(self.gradient))
        if np.isfinite(slack).all():
            slack = _together(slack[1:], counted)
        missing = norms(difference(self.gradient, gradient), counted) + slack
        size = norms(self.gradient, counted) - slack
        bias = np.full(missing.shape, np.inf)
        np.divide(missing, size, out=bias, where=(size > 0) & (missing < np.inf))
        return np.where(missing == 0, 0.0, bias)


def extrapolated(windows: Mapping[int, Gradient], floor: float) -> Reference:
    """The longest window for the full gradient; what is beyond, as a geometric series.

    With G the last block, of w ages: ``||G|| beta^w / (1 - beta^w)`` (Aicher, Foti & Fox 2019, who bound adjoints).
    """
    *_, before, longest = [0, *sorted(windows)]
    gradient = windows[longest]
    block = norms(difference(gradient, windows[before]) if before else gradient)
    beta = rate(windows, floor)
    if block[0] <= floor:
        return Reference(gradient, block)
    if beta is None or beta >= 1:
        return Reference(gradient, np.inf)
    factor = beta ** (longest - before)
    return Reference(gradient, block * factor / (1 - factor))


def rate(windows: Mapping[int, Gradient], floor: float) -> float | None:
    """Beta: exp of the slope of log ||G|| over the blocks G of pairs of the last half of the ages.

    Blocks of a norm below ``floor`` are rounding: where all but one are, the half before it is looked at. None: no half
    has two blocks.
    """
    known = sorted(windows)
    while len(known) > 2:
        blocks = list(pairwise(k for k in known if 2 * k >= known[-1]))
        widths = sorted((b - a for a, b in blocks), reverse=True)
        width = max(widths, key=widths.count)
        ages = [(a, b) for a, b in blocks if b - a == width]
        sizes = np.array([norms(difference(windows[b], windows[a]))[0] for a, b in ages])
        if (sizes > floor).sum() > 1:
            starts = np.array([a for a, _ in ages])[sizes > floor]
            return float(np.exp(np.polyfit(starts, np.log(sizes[sizes > floor]), 1)[0]))
        known = [k for k in known if 2 * k <= known[-1]]
    return None
