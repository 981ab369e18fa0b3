"""Where a large tensor is wrong: entries, rows, columns, a block of them, or all of it, in few directions.

Two ideas. *Digits*: if one entry is wrong in a group, the gap (analytic minus numeric) along v and along v times a
ramp over the positions have its position as their ratio, so a group is halved blindly only when it holds several.
*Group testing* (Dorfman 1943; adaptive halving: Hwang 1972; random halves as in Capetanakis 1979): the gap of a random
half tells that of the other, because gaps of disjoint groups along the same v add up.

Nothing is believed beyond the bounds. A gap counts only above twice its bound, a ratio only as the interval that the
bounds leave, an entry only after it was displaced alone, and what is left over is asked again along a fresh direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from gradaudit.arrays import Array
from gradaudit.direction import Direction, entry_direction

__all__ = ["Gap", "Located", "Oracle", "localise"]

#: A gap counts as an error beyond so many bounds.
_SURE = 2.0
#: The gap of a group's other half is taken as the difference if the group's bound is below this share of its gap.
_PRECISE = 0.02
#: So many entries are read one by one.
_FEW = 3
#: Sampled entries of a region that looks wrong all over: first some, then more; of the latter one may be right.
_SAMPLE, _MORE = 4, 8
#: Samples are grouped until a wrong group would stand so far above the bound.
_CLEAR = 8.0
#: So many groups, nearly all of them wrong, are no list of single errors.
_GROUPS, _NEARLY_ALL = 60, 0.95
#: Of the groups just tried so many must be right before single errors are looked for in the others.
_HOPEFUL = 0.15
#: Scales held at once, in bytes; entries reported at most.
_BATCH_BYTES = 2**26
_MOST_ENTRIES = 1000

Kind: TypeAlias = Literal["entries", "rows", "columns", "block", "whole tensor", "not found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Analytic minus numeric derivative along one direction.

    Attributes:
        value: as measured.
        bound: |true gap - value| is not larger.
    """

    value: float
    bound: float

    @property
    def wrong(self) -> bool:
        """The bound does not account for it."""
        return abs(self.value) > _SURE * self.bound

    def without(self, part: Gap, times: float = 1.0) -> Gap:
        """What is left of the sum when ``times`` one part is taken away."""
        return Gap(value=self.value - times * part.value, bound=self.bound + abs(times) * part.bound)


#: One request for the gaps along many directions.
Oracle: TypeAlias = Callable[[Sequence[Direction]], Sequence[Gap]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a tensor is wrong.

    Attributes:
        kind: of place.
        where: for people.
        entries: wrong entries that were read one by one, the worst first; examples where ``kind`` is no "entries".
        errors: analytic minus numeric at them.
        directions: asked for.
        complete: nothing else is wrong, as far as the bounds can see.
    """

    kind: Kind
    where: str
    entries: tuple[tuple[int, ...], ...]
    errors: tuple[float, ...]
    directions: int
    complete: bool


class _Spent(Exception):  # noqa: N818  # not an error: what was found is reported
    """No directions left."""


@dataclass(frozen=True, slots=True, eq=False)
class _Region:
    """Some rows crossed with some columns."""

    axes: tuple[Array, Array]

    @property
    def size(self) -> int:
        return len(self.axes[0]) * len(self.axes[1])

    def only(self, axis: int, positions: Array) -> _Region:
        return _Region((positions, self.axes[1]) if axis == 0 else (self.axes[0], positions))


@dataclass(frozen=True, slots=True, eq=False)
class _Ramp:
    """The gap along v * (position - centre) / width."""

    gap: Gap
    centre: float
    width: float

    def inside(self, total: Gap, positions: Array) -> Array:
        """Those of the positions, in order, where a single error could sit that makes both gaps."""
        ratio = self.gap.value / total.value
        slack = _SURE * (self.gap.bound + abs(ratio) * total.bound) / (abs(total.value) - total.bound) + 1e-9
        ends = self.centre + self.width * (ratio + np.array([-slack, slack]))
        return positions[slice(*np.searchsorted(positions, ends + [-1e-3, 1e-3]))]

    def without(self, other: _Ramp, total: Gap) -> _Ramp:
        """The ramp of the rest, given that of a part whose plain gap is ``total``."""
        left = self.gap.without(other.gap, other.width / self.width)
        return _Ramp(left.without(total, (other.centre - self.centre) / self.width), self.centre, self.width)


@dataclass(slots=True, eq=False)
class _Group:
    """Entries, rows or columns among which something is wrong."""

    members: Array
    gap: Gap
    ramp: _Ramp | None = None
    measured: bool = True
    other: tuple[_Ramp, _Group] | None = None
