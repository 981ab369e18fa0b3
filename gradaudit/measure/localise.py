"""Where a large tensor is wrong: entries, rows, columns, a block of them or all of it, in few directions.

*Digits*: the gap (analytic minus numeric) along v times a ramp, over that along v, is the position of a single error.
*Group testing* (Dorfman 1943, Hwang 1972): of several, a random half is measured; the other half is the difference.
A vector is seen as a column, a tensor of more than two dimensions as a matrix (shape[0], the rest).
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
from gradaudit.numeric.budget import Stop

__all__ = ["Gap", "Located", "Oracle", "localise"]

#: A gap is an error beyond so many bounds. Where the bound is below this share of it, differences are exact enough.
_SURE, _PRECISE = 2.0, 0.02
#: Entries read one by one; named; directions for each where there are too few for all; looks; bytes of scales held.
_FEW, _NAMED, _EACH, _LOOKS, _BATCH_BYTES = 3, 4, 4, 3, 2**26
#: Sampled entries of a region that may be wrong all over: some, then all, of which so many may be right.
_FIRST, _SAMPLE, _RIGHT = 4, 12, 2
#: No list of single errors: of so many random halves (at first; later; half as many of faint ones) no more are clean
#: than this share and what hides in the bounds, which is bounded. Equal parts hide with less than the last probability.
_SOME, _HALVES, _CLEAN, _FAINT, _DOUBT = 16, 60, 0.05, 0.3, 0.01

Kind: TypeAlias = Literal["entries", "rows", "columns", "block", "whole tensor", "not found"]
_Region: TypeAlias = tuple[Array, Array]  # some rows crossed with some columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Analytic minus numeric derivative along one direction; the true one is within ``bound`` of ``value``."""

    value: float
    bound: float

    @property
    def wrong(self) -> bool:
        """The bound does not account for it."""
        return abs(self.value) > _SURE * self.bound

    def without(self, part: Gap, times: float = 1.0) -> Gap:
        """What is left of a sum without ``times`` one part of it."""
        return Gap(value=float(self.value - times * part.value), bound=float(self.bound + abs(times) * part.bound))


_NONE = Gap(value=0.0, bound=0.0)
#: One request for the gaps along many directions; it should not keep them, for they may be large.
Oracle: TypeAlias = Callable[[Sequence[Direction]], Sequence[Gap]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a tensor is wrong; the entries are those that were read one by one, the worst first."""

    kind: Kind
    where: str  # for people
    entries: tuple[tuple[int, ...], ...]
    errors: tuple[float, ...]  # analytic minus numeric at the entries
    directions: int  # asked for
    complete: bool  # nothing else is wrong, as far as the bounds can see


@dataclass(slots=True, eq=False)
class _Group:
    """Some rows (axis 0), columns (1) or flat positions (None), in order, and the gaps along v there."""

    members: Array
    axis: int | None
    gap: Gap = _NONE
    derived: bool = False  # the gap is a difference
    ramp: Gap | None = None  # the gap along v * (position - frame[0]) / frame[1]
    frame: tuple[float, float] | None = None
    other: _Group | None = None  # the other part of the group it was cut out of
    aimed: bool = False  # by the ramp of that group
    inherited: Gap | None = None  # that ramp, if exact enough for differences

    def inside(self) -> Array:
        """Where a single error that makes both gaps could sit; anywhere without a ramp."""
        if self.ramp is None or self.frame is None:
            return self.members
        ratio = self.ramp.value / self.gap.value
        slack = _SURE * (self.ramp.bound + abs(ratio) * self.gap.bound) / (abs(self.gap.value) - self.gap.bound)
        ends = self.frame[0] + self.frame[1] * (ratio + np.array([-slack, slack])) + [-1e-3, 1e-3]
        return self.members[slice(*np.searchsorted(self.members, ends))]

    def cut(self, rng: np.random.Generator) -> list[_Group]:
        """Two parts, or itself alone, still to be measured: where the ramp points and the rest, else random halves."""
        n, part = len(self.members), self.inside()
        aimed = 0 < len(part) <= n / 4
        part = part if aimed else np.sort(rng.permutation(self.members)[: (n + 1) // 2])
        part = part[: 1 if len(part) <= _FEW else None]
        exact = aimed or self.gap.bound < _PRECISE * abs(self.gap.value)
        inherited = self.ramp if exact else None
        first = _Group(part, self.axis, frame=None if aimed else self.frame, aimed=aimed, inherited=inherited)
        rest = np.setdiff1d(self.members, part, assume_unique=True)
        first.other = _Group(rest, self.axis, self.gap, exact, None, self.frame, first, aimed, inherited)
        return [first, first.other] if n > 1 else [first]

    def wants_ramp(self, *, some: bool) -> bool:
        """Whether one error alone may be in it, and neither its ramp nor that of the whole says where."""
        if not self.gap.wrong or len(self.members) <= _FEW or self.other is None:
            return False
        alone, precise = not self.other.gap.wrong, self.gap.bound < _PRECISE * abs(self.gap.value)
        if alone and (not self.aimed or (self.derived and len(self.other.members) == 1)):
            self.ramp = self.inherited
        return self.ramp is None and (alone and not self.derived if self.aimed else alone or (some and precise))


@dataclass(slots=True, eq=False)
class _Search:
    """One tensor as a matrix: what was asked of it, and what is known."""

    oracle: Oracle
    name: str
    shape: tuple[int, ...]
    scale: Array
    matrix: tuple[int, int]
    seed: int
    most: int
    live: Array  # not yet found wrong
    unit: Array  # v for scales of one
    asked: int = 0
    complete: bool = False
    read: dict[int, Gap] = field(default_factory=dict)
    found: list[tuple[_Region, str]] = field(default_factory=list)

    def run(self) -> None:
        """Search, and search what is left, until a fresh direction sees nothing there; `Stop` when all is spent."""
        whole = np.arange(self.matrix[0]), np.arange(self.matrix[1])
        looks, left = 0, self.live.size
        while looks < _LOOKS and left and not (self.complete and left < self.live.size):
            unit = Direction(label=self.name, scales={self.name: 1.0}, seed=self.seed).block(self.name, self.shape)
            self.unit = np.asarray(unit).ravel()
            (gap,) = self.measure([self.entries(whole)])
            self.complete = bool(abs(gap.value) <= gap.bound < math.inf)
            if gap.wrong:
                self.explore(whole, gap)
                self.live[[k for k, error in self.read.items() if error.wrong]] = False
                for region, _ in self.found:
                    self.live[self.entries(region)] = False
            now = int(np.count_nonzero(self.live))
            looks, left, self.seed = (0 if now < left else looks + 1), now, self.seed + 1
        self.complete |= not left

    def entries(self, region: _Region, group: _Group | None = None) -> Array:
        """Flat positions of a region, or of a group in it."""
        if group is not None and group.axis is None:
            return group.members
        rows, columns = region if group is None else _slab(region, group.axis, group.members)
        flat: Array = (rows[:, None] * self.matrix[1] + columns).ravel()
        return flat[self.live[flat]]

    def ask(self, probes: Sequence[tuple[Array, Array | None]]) -> list[Gap]:
        """Gaps along v restricted to some entries, times weights if any; few scales are held at a time."""
        if self.asked + len(probes) > self.most:
            raise Stop
        self.asked += len(probes)
        n = max(1, _BATCH_BYTES // (8 * self.scale.size))
        chunks = (probes[i : i + n] for i in range(0, len(probes), n))
        return [gap for chunk in chunks for gap in self.oracle([self.direction(*probe) for probe in chunk])]

    def direction(self, entries: Array, weights: Array | None) -> Direction:
        if len(entries) == 1 and weights is None:
            index = tuple(map(int, np.unravel_index(entries[0], self.shape)))
            return entry_direction(self.name, index, float(self.scale[entries[0]]))
        scale = np.zeros(self.scale.size)
        scale[entries] = self.scale[entries] * (1.0 if weights is None else weights)
        return Direction(label=f"part of {self.name}", scales={self.name: scale.reshape(self.shape)}, seed=self.seed)

    def measure(self, groups: Sequence[Array]) -> list[Gap]:
        """Gaps along v restricted to each group; a group of one entry is read by itself, once."""
        keys = [int(g[0]) if len(g) == 1 else -1 - i for i, g in enumerate(groups)]
        new = {key: g for key, g in zip(keys, groups, strict=True) if len(g) and key not in self.read}
        found = dict(zip(new, self.ask([(g, None) for g in new.values()]), strict=True))
        self.read |= {k: _NONE.without(gap, -1 / self.scale[k]) for k, gap in found.items() if k >= 0}
        return [
            found.get(k, _NONE) if k < 0 else _NONE.without(self.read[k], -self.scale[k] * self.unit[k]) for k in keys
        ]

    def ramps(self, region: _Region, groups: Sequence[_Group]) -> None:
        """Measure ramps; of two halves one, where their sum is known."""
        asked = [g for g in groups if not (g.derived and g.inherited and g.other in groups)]
        probes: list[tuple[Array, Array | None]] = []
        for g in asked:
            g.frame = g.frame or (float(g.members[[0, -1]].mean()), float(np.ptp(g.members)) / 2)
            entries = self.entries(region, g)
            position = entries if g.axis is None else np.divmod(entries, self.matrix[1])[g.axis]
            probes.append((entries, (position - g.frame[0]) / g.frame[1]))
        for g, gap in zip(asked, self.ask(probes), strict=True):
            g.ramp = gap
        for g in groups:
            if g.ramp is None and g.inherited and g.other and g.other.ramp:
                g.ramp = g.inherited.without(g.other.ramp)

    def explore(self, region: _Region, gap: Gap) -> None:
        region, gap = self.narrow(region, gap)
        entries = self.entries(region)
        if len(entries) <= _SAMPLE:
            self.measure(list(entries[:, None]))
            return
        line, start = min(map(len, region)) == 1, region
        for parts in (1, 4, 3) if line else (4, 3):
            region = self.shrink(start, region, parts)
            if parts == 4 and any(len(a) / 3 < len(b) < len(a) for a, b in zip(start, region, strict=True)):
                continue  # two quarters may be a third
            if len(smaller := self.entries(region)) < len(entries):
                entries, (gap,) = smaller, self.measure([smaller])
            share, note = self.dense(region)
            if share in (0, 1):
                break
        kinds = ((None, _HALVES),) if line else ((None, _SOME), (0, _SOME), (1, _SOME), (None, _HALVES))
        if share < 1 and not any(self.search(region, axis, gap, enough) for axis, enough in kinds):
            self.found.append((region, f", spread{note}"))

    def narrow(self, region: _Region, gap: Gap) -> tuple[_Region, Gap]:
        """While one entry, row or column could account for the gap, go there and see."""
        while (size := len(region[0]) * len(region[1])) > _FEW:
            axes = [_Group(region[axis], axis, gap) for axis in (0, 1) if len(region[axis]) > 1]
            self.ramps(region, axes)
            slabs = [_slab(region, g.axis, g.inside()) for g in axes]
            trials = (t for t in ((slabs[0][0], slabs[-1][1]), *slabs) if 0 < len(t[0]) * len(t[1]) <= size / 2)
            for trial in trials:
                (seen,) = self.measure([self.entries(trial)])
                if seen.wrong and not gap.without(seen).wrong:
                    region, gap = trial, seen
                    break
            else:
                break
        return region, gap

    def shrink(self, start: _Region, region: _Region, parts: int) -> _Region:
        """Less of a region: only where those of so many equal parts of the rows, and of the columns, are wrong."""
        for axis in (0, 1):
            pieces = np.array_split(start[axis], parts) if len(start[axis]) >= parts > 1 else []
            gaps = self.measure([self.entries(start, _Group(piece, axis)) for piece in pieces])
            wrong = [piece for piece, gap in zip(pieces, gaps, strict=True) if gap.wrong]
            if wrong and _hidden(gaps) ** (len(pieces) - len(wrong)) < _DOUBT:
                kept = np.intersect1d(region[axis], np.concatenate(wrong))
                region = _slab(region, axis, kept) if len(kept) else region
        return region

    def dense(self, region: _Region) -> tuple[float, str]:
        """The share of wrong ones among samples; a region where they all are is found."""
        entries = np.random.default_rng([self.seed, 8]).permutation(self.entries(region))
        wrong = [error.wrong for error in self.measure(list(entries[:_FIRST, None]))]
        if sum(wrong) >= _FIRST - 1:
            wrong += [error.wrong for error in self.measure(list(entries[_FIRST:_SAMPLE, None]))]
        note = f" ({sum(wrong)} of {len(wrong)} sampled entries {'are' if any(wrong) else 'seem'} wrong)"
        if sum(wrong) < _SAMPLE - _RIGHT:
            return min(0.9, sum(wrong) / len(wrong)), note
        self.found.append((region, note))
        return 1.0, note

    def search(self, region: _Region, axis: int | None, gap: Gap, enough: int) -> bool:
        """Single entries, rows or columns: cut what is wrong, by its digits or at random, all groups in step.

        Returns: whether that came to an end; not if so many random halves are wrong nearly all.
        """
        rng = np.random.default_rng([self.seed, 9])
        groups = [_Group(self.entries(region) if axis is None else region[axis], axis, gap)]
        lines: list[_Group] = []
        while groups:
            halves = [half for g in groups for half in g.cut(rng)]
            gaps = iter(self.measure([self.entries(region, h) for h in halves if not h.derived]))
            for h in halves:
                h.gap = h.gap.without(h.other.gap) if h.derived and h.other else next(gaps)
            random = [h.gap for h in halves if not h.aimed]
            hidden, clean = min(_FAINT, 2 * _hidden(random)), sum(not gap.wrong for gap in random)
            many = len(random) * (2 if hidden > _FAINT / 3 else 1) >= enough
            if many and clean < (_CLEAN + hidden) * len(random):
                return False
            left = (self.most - self.asked) // _EACH if many else None
            groups = [h for h in halves if h.gap.wrong and (h.derived or len(h.members) > 1)][:left]
            some = not all(h.gap.wrong or h.aimed for h in halves)
            self.ramps(region, [g for g in groups if g.wants_ramp(some=some)])
            lines += [h for h in halves if h.gap.wrong and not h.derived and len(h.members) == 1]
        few = axis is None or 2 * len(lines) <= len(region[axis])
        if few and axis is not None and lines:
            together = _slab(region, axis, np.sort(np.concatenate([line.members for line in lines])))
            if self.dense(together)[0] < 1:
                for line in lines:
                    self.explore(_slab(region, axis, line.members), line.gap)
        return few

    def located(self) -> Located:
        wrong = sorted((k for k, error in self.read.items() if error.wrong), key=lambda k: -abs(self.read[k].value))
        entries = tuple(tuple(map(int, np.unravel_index(k, self.shape))) for k in wrong)
        at = np.divmod(np.array(wrong, int), self.matrix[1])
        rows, columns = map(np.unique, at)
        filled = self.complete and not self.found and 1 < len(wrong) == len(rows) * len(columns)
        if filled and (min(len(rows), len(columns)) > 1 or _place((rows, columns), self.matrix)[0] != "block"):
            self.found.append(((rows, columns), ""))
        places = [(*_place(region, self.matrix), note) for region, note in self.found]
        texts = [text + note for _, text, note in places]
        outside = ~sum((np.isin(at[0], r) & np.isin(at[1], c) for (r, c), _ in self.found), np.zeros(len(wrong), bool))
        if names := [str(entry) for entry, alone in zip(entries, outside, strict=True) if alone]:
            named = ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
            texts.append(f"entr{'ies' if len(names) > 1 else 'y'} {named}")
        kind: Kind = places[0][0] if places else "entries" if wrong else "not found"
        where = "; ".join(texts) or ("nowhere" if self.complete else "not found in so few directions")
        where += f", of a {self.matrix[0]} x {self.matrix[1]} matrix" if places and len(self.shape) > 2 else ""
        errors, n = tuple(self.read[k].value for k in wrong), self.asked
        return Located(kind=kind, where=where, entries=entries, errors=errors, directions=n, complete=self.complete)


def _place(region: _Region, matrix: tuple[int, int]) -> tuple[Kind, str]:
    texts = []
    nouns = ("row", "rows") if matrix[1] > 1 else ("entry", "entries"), ("column", "columns")
    for noun, positions, n in zip(nouns, region, matrix, strict=True):
        size, start = len(positions), int(positions[0])
        runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
        text = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
        if len(runs) == 1 and size > 1 and n // size <= 4 and n % size == start % size == 0:
            text += f" ({start // size + 1} of {n // size} equal parts)"
        texts += [f"{noun[size > 1]} {text}"] if size < n else []
    kinds: dict[str, Kind] = {"": "whole tensor", "r": "rows", "c": "columns"}
    kind = kinds.get("".join(text[0] for text in texts), "block")
    return kind, ", ".join(texts) or kind


def _hidden(gaps: Sequence[Gap]) -> float:
    """How many of normally distributed gaps of their size do not stand out of the bounds; at most 1."""
    bound, value = sum(gap.bound**2 for gap in gaps), sum(gap.value**2 for gap in gaps)
    return min(1.0, 0.8 * _SURE * math.sqrt(bound / value)) if value else 1.0


def _slab(region: _Region, axis: int | None, positions: Array) -> _Region:
    return (region[0], positions) if axis else (positions, region[1])


def localise(
    oracle: Oracle, name: str, shape: tuple[int, ...], scale: float | Array, *, seed: int, most: int
) -> Located:
    """Find out where a tensor is wrong, in at most ``most`` directions of lengths ``scale``, see `Direction`."""
    size = int(np.prod(shape, dtype=np.int64))
    lengths = np.broadcast_to(np.asarray(scale, np.float64).reshape(-1), (size,))
    matrix = (shape[0], size // shape[0]) if len(shape) > 1 else (size, 1)
    search = _Search(oracle, name, shape, lengths, matrix, seed, most, np.ones(size, bool), lengths)
    with suppress(Stop):
        search.run()
    return search.located()
