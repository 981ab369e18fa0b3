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


@dataclass(slots=True, eq=False)
class _Session:
    """One tensor, seen as a matrix, and what is known of it."""

    oracle: Oracle
    name: str
    shape: tuple[int, ...]
    scale: Array
    seed: int
    most: int
    columns: int
    asked: int = 0
    complete: bool = False
    blind: bool = False
    read: dict[int, Gap] = field(default_factory=dict)
    regions: list[tuple[_Region, int, int]] = field(default_factory=list)
    live: Array = field(init=False)
    unit: Array = field(init=False)
    rng: np.random.Generator = field(init=False)

    def run(self) -> None:
        self.live = np.ones(self.scale.size, bool)
        self.rng = np.random.default_rng([self.seed, 8])
        whole = _Region((np.arange(self.scale.size // self.columns), np.arange(self.columns)))
        known = -1
        while len(self.read) + len(self.regions) > known and not self.complete:
            known = len(self.read) + len(self.regions)
            unit = Direction(label=self.name, scales={self.name: 1.0}, seed=self.seed).block(self.name, self.shape)
            assert unit is not None
            self.unit = unit.ravel()
            (gap,) = self.measure([self.entries(whole)]) if self.live.any() else [Gap(value=0.0, bound=0.0)]
            self.complete = not gap.wrong and not self.blind
            if gap.wrong:
                self.explore(whole, gap)
            for region, _, _ in self.regions:
                self.live[self.entries(region)] = False
            self.live[[k for k, gap in self.read.items() if gap.wrong]] = False
            self.seed += 1

    def entries(self, region: _Region) -> Array:
        rows, columns = region.axes
        flat = (rows[:, None] * self.columns + columns).ravel()
        return flat[self.live[flat]]

    def ask(self, probes: Sequence[tuple[Array, Array | float]]) -> list[Gap]:
        """Gaps along v restricted to some entries, times weights."""
        if self.asked + len(probes) > self.most:
            raise _Spent
        self.asked += len(probes)
        size = max(1, _BATCH_BYTES // (8 * self.scale.size))
        gaps: list[Gap] = []
        for i in range(0, len(probes), size):
            gaps += self.oracle([self.direction(*probe) for probe in probes[i : i + size]])
        self.blind |= not all(math.isfinite(gap.bound) for gap in gaps)
        return gaps

    def direction(self, entries: Array, weights: Array | float) -> Direction:
        if len(entries) == 1:
            index = np.unravel_index(int(entries[0]), self.shape)
            return entry_direction(self.name, tuple(map(int, index)), float(self.scale[entries[0]]))
        scale = np.zeros(self.scale.size)
        scale[entries] = self.scale[entries] * weights
        return Direction(label=f"part of {self.name}", scales={self.name: scale.reshape(self.shape)}, seed=self.seed)

    def measure(self, groups: Sequence[Array]) -> list[Gap]:
        """Gaps along v restricted to each group; a group of one entry is read by itself."""
        single = [int(g[0]) if len(g) == 1 else None for g in groups]
        new = [i for i, k in enumerate(single) if k is None or k not in self.read]
        found = dict(zip(new, self.ask([(groups[i], 1.0) for i in new]), strict=True))
        gaps = []
        for i, k in enumerate(single):
            if k is None:
                gaps.append(found[i])
                continue
            if k not in self.read:
                length = self.scale[k]
                self.read[k] = Gap(value=found[i].value / length, bound=found[i].bound / abs(length))
            length = float(self.scale[k] * self.unit[k])
            gaps.append(Gap(value=self.read[k].value * length, bound=self.read[k].bound * abs(length)))
        return gaps

    def ramps(self, wanted: Sequence[tuple[Array, int | None]]) -> list[_Ramp]:
        """Ramps over the rows (0), columns (1) or flat positions (None) of some entries."""
        probes, frames = [], []
        for entries, axis in wanted:
            positions = entries if axis is None else np.divmod(entries, self.columns)[axis]
            low, high = float(positions.min()), float(positions.max())
            frames.append(((low + high) / 2, (high - low) / 2))
            probes.append((entries, (positions - frames[-1][0]) / frames[-1][1]))
        return [_Ramp(gap, *frame) for gap, frame in zip(self.ask(probes), frames, strict=True)]

    def explore(self, region: _Region, gap: Gap) -> None:
        """Find what is wrong in a region that is."""
        region, gap = self.narrow(region, gap)
        if region.size <= _FEW:
            self.measure([np.array([k]) for k in self.entries(region)])
            return
        line = min(map(len, region.axes)) == 1
        for parts in (1, 4, 3) if line else (4, 3):
            smaller = self.shrink(region, parts)
            if smaller.size < region.size:
                region = smaller
                (gap,) = self.measure([self.entries(region)])
            share = self.dense(region, gap)
            if share == 1.0:
                return
            if share == 0.0:
                break
        self.search(region, None if line else self.thin(region), gap)

    def narrow(self, region: _Region, gap: Gap) -> tuple[_Region, Gap]:
        """While one entry, row or column could account for the gap, go there and see."""
        while region.size > _FEW:
            axes = [axis for axis in (0, 1) if len(region.axes[axis]) > 1]
            ramps = self.ramps([(self.entries(region), axis) for axis in axes])
            slabs = [region.only(axis, r.inside(gap, region.axes[axis])) for axis, r in zip(axes, ramps, strict=True)]
            slabs = [s for s in slabs if 0 < s.size <= region.size / 2]
            both = _Region((slabs[0].axes[0], slabs[1].axes[1])) if len(slabs) > 1 else None
            for trials in ([both] if both else [], slabs):
                gaps = self.measure([self.entries(trial) for trial in trials])
                same = [i for i, g in enumerate(gaps) if not gap.without(g).wrong]
                if same:
                    break
            else:
                return region, gap
            region, gap = trials[same[0]], gaps[same[0]]
        return region, gap

    def shrink(self, region: _Region, parts: int) -> _Region:
        """Only those equal parts of rows and of columns that are wrong."""
        axes = [axis for axis in (0, 1) if len(region.axes[axis]) >= parts > 1]
        pieces = [(axis, piece) for axis in axes for piece in np.array_split(region.axes[axis], parts)]
        gaps = self.measure([self.entries(region.only(axis, piece)) for axis, piece in pieces])
        for axis in axes:
            wrong = [p for (a, p), gap in zip(pieces, gaps, strict=True) if a == axis and gap.wrong]
            region = region.only(axis, np.concatenate(wrong)) if wrong else region
        return region

    def dense(self, region: _Region, gap: Gap) -> float:
        """The share of wrong ones among sampled entries; where they all are, the region is noted."""
        entries = self.entries(region)
        size = max(1, math.ceil(len(entries) * (_CLEAR * gap.bound / gap.value) ** 2))
        if size * (_SAMPLE + _MORE) > len(entries):
            return 0.5
        sample = self.rng.permutation(entries)[: size * (_SAMPLE + _MORE)].reshape(-1, size)
        wrong = sum(g.wrong for g in self.measure(list(np.sort(sample[:_SAMPLE]))))
        if wrong == _SAMPLE:
            wrong += sum(g.wrong for g in self.measure(list(np.sort(sample[_SAMPLE:]))))
            if wrong >= _SAMPLE + _MORE - 1:
                self.regions.append((region, wrong, _SAMPLE + _MORE))
                return 1.0
            return wrong / (_SAMPLE + _MORE)
        return wrong / _SAMPLE

    def thin(self, region: _Region) -> int | None:
        """The axis along which little is wrong, if it is one: a few rows or a few columns."""
        picked = []
        for line in region.axes:
            picked += [np.sort(self.rng.permutation(line)[: max(1, len(line) // 16)]) for _ in range(3)]
        gaps = self.measure([self.entries(region.only(i // 3, p)) for i, p in enumerate(picked)])
        thin = [any(not g.wrong for g in gaps[i:i+3]) for i in (0, 3)]
        return thin.index(True) if thin[0] != thin[1] else None

    def members(self, region: _Region, axis: int | None, members: Array) -> Array:
        return members if axis is None else self.entries(region.only(axis, members))

    def search(self, region: _Region, axis: int | None, gap: Gap) -> None:
        """Single entries, rows or columns: halve what is wrong, at random or by its digits, all groups in step."""
        groups = [_Group(self.entries(region) if axis is None else region.axes[axis], gap)]
        right = 0.0
        while groups:
            self.rank(groups, region, axis)
            children = self.halve(groups, region, axis)
            right = sum(not c.gap.wrong for c in children) / len(children)
            if len(children) >= _GROUPS and right < 1 - _NEARLY_ALL:
                self.regions.append((region, 0, 0))
                return
            wrong = [c for c in children if c.gap.wrong]
            groups = [c for c in wrong if len(c.members) > 1 or not c.measured]
            if axis is not None:
                for c in wrong:
                    if c not in groups:
                        self.explore(region.only(axis, c.members), c.gap)

    def rank(self, groups: Sequence[_Group], region: _Region, axis: int | None) -> None:
        """Measure the ramps that are missing; that of a group's other half is a difference."""
        new = [g for g in groups if g.ramp is None and len(g.members) > _FEW and g.other is None]
        ramps = self.ramps([(self.members(region, axis, g.members), axis) for g in new])
        for group, ramp in zip(new, ramps, strict=True):
            group.ramp = ramp
        late = [g for g in groups if g.ramp is None and len(g.members) > _FEW and g.other is not None]
        for g in late:
            whole, half = g.other
            if half.ramp is not None:
                g.ramp = whole.without(half.ramp, half.gap)
        late = [g for g in late if g.ramp is None]
        ramps = self.ramps([(self.members(region, axis, g.members), axis) for g in late])
        for group, ramp in zip(late, ramps, strict=True):
            group.ramp = ramp

    def halve(self, groups: Sequence[_Group], region: _Region, axis: int | None) -> list[_Group]:
        cuts, wanted = [], []
        for g in groups:
            inside = g.ramp.inside(g.gap, g.members) if g.ramp else g.members
            n = len(g.members)
            few = 0 < len(inside) <= n / 4
            if few:
                part = inside[: 1 if len(inside) <= _FEW else None]
            else:
                part = np.sort(self.rng.permutation(g.members)[: (n + 1) // 2])
            rest = np.setdiff1d(g.members, part, assume_unique=True)
            derived = few or g.gap.bound < _PRECISE * abs(g.gap.value)
            cuts.append((g, part, rest, derived))
            wanted += [part] if derived or not len(rest) else [part, rest]
        gaps = iter(self.measure([self.members(region, axis, m) for m in wanted]))
        children = []
        for g, part, rest, derived in cuts:
            first = _Group(part, next(gaps))
            children.append(first)
            if not len(rest):
                continue
            second = _Group(rest, g.gap.without(first.gap) if derived else next(gaps), measured=not derived)
            children.append(second)
            if g.ramp is None or not derived:
                continue
            if not first.gap.wrong:
                second.ramp = g.ramp
            elif not second.gap.wrong:
                first.ramp = g.ramp
            elif len(part) == 1:
                p = part[0]
                at = _Ramp(Gap(value=0.0, bound=0.0), float(p), 1.0)
                second.ramp = g.ramp.without(at, first.gap)
            else:
                second.other = (g.ramp, first)
        return children


def localise(
    oracle: Oracle, name: str, shape: tuple[int, ...], scale: float | Array, *, seed: int, most: int
) -> Located:
    size = int(np.prod(shape, dtype=np.int64))
    scale_ = np.broadcast_to(np.asarray(scale, np.float64).reshape(-1), (size,))
    columns = size // shape[0] if len(shape) > 1 else 1
    session = _Session(oracle=oracle, name=name, shape=shape, scale=scale_, seed=seed, most=most, columns=columns)
    with suppress(_Spent):
        session.run()
    return session
