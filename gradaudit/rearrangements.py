"""What can happen to parameters on the way from one framework to another: other orders of blocks, axes and tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TypeAlias

import numpy as np

from gradaudit.arrays import Array, NamedArrays

__all__ = ["Blocks", "Rearrangement", "rearrangements"]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

#: Gates of recurrent layers (4, 3); query, key and value (3); halves of gated units (2).
_N_BLOCKS = (4, 3, 2)
_PARTS = re.compile(r"[./]")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Equal blocks along an axis, in another order: the k-th block is what block ``order[k]`` was."""

    order: tuple[int, ...]
    axes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """Another arrangement of some parameters.

    Attributes:
        tensors: the parameters that change.
        words: how, with {} for their names.
        made: what each becomes, a function of all parameters.
        blocks: where blocks change places, which.
    """

    tensors: tuple[str, ...]
    words: str
    made: Mapping[str, Callable[[NamedArrays], Array]]
    blocks: Blocks | None = None

    def apply(self, parameters: NamedArrays) -> dict[str, Array]:
        """All parameters, those named rearranged."""
        return {n: self.made[n](parameters) if n in self.made else p for n, p in parameters.items()}


def rearrangements(shapes: Shapes) -> Iterator[Rearrangement]:
    """All that are tried for a model of these parameters, the likeliest first."""
    yield from _blocks_of_layers(shapes)
    yield from _parts_exchanged(shapes)
    yield from _transposed(shapes)
    yield from _blocks_of_tensors(shapes)
    yield from _swapped(shapes)
    yield from _flipped(shapes)
    yield from _interleaved(shapes)
    yield from (_of_one(name, "{} with the opposite sign", np.negative) for name in shapes)


def _of_one(name: str, words: str, change: Callable[[Array], Array], blocks: Blocks | None = None) -> Rearrangement:
    return Rearrangement((name,), words, {name: lambda p: change(p[name])}, blocks)


def _orders(length: int) -> Iterator[tuple[int, ...]]:
    for n in _N_BLOCKS:
        if length % n == 0:
            yield from itertools.islice(itertools.permutations(range(n)), 1, None)


def _blocks_of_layers(shapes: Shapes) -> Iterator[Rearrangement]:
    """The tensors of one layer together: those of one prefix with an axis of the same length."""
    layers: dict[tuple[str, int], list[str]] = {}
    for name, shape in shapes.items():
        parent = name[: max(name.rfind("."), name.rfind("/")) + 1]
        for length in set(shape):
            layers.setdefault((parent, length), []).append(name)
    for (_, length), names in layers.items():
        if len(names) > 1:
            # an axis of the same length may be another one by chance
            sides = [{n: shapes[n].index(length) for n in names}]
            last = {n: len(shapes[n]) - 1 - shapes[n][::-1].index(length) for n in names}
            for axes in sides if last == sides[0] else [*sides, last]:
                yield from (_reordered(Blocks(order, axes)) for order in _orders(length))


def _blocks_of_tensors(shapes: Shapes) -> Iterator[Rearrangement]:
    for name, shape in shapes.items():
        for axis, length in enumerate(shape):
            # blocks of one entry are no gates
            orders = (order for order in _orders(length) if len(order) < length)
            yield from (_reordered(Blocks(order, {name: axis})) for order in orders)


def _reordered(blocks: Blocks) -> Rearrangement:
    def change(name: str, p: NamedArrays) -> Array:
        parts = np.split(p[name], len(blocks.order), axis=blocks.axes[name])
        return np.concatenate([parts[k] for k in blocks.order], axis=blocks.axes[name])

    made = {name: partial(change, name) for name in blocks.axes}
    before, after = (", ".join(str(k + 1) for k in order) for order in (sorted(blocks.order), blocks.order))
    return Rearrangement(tuple(blocks.axes), f"the blocks {before} of {{}} read as {after}", made, blocks)


def _transposed(shapes: Shapes) -> Iterator[Rearrangement]:
    for name, shape in shapes.items():
        if len(shape) == 2 and shape[0] == shape[1] > 1:
            yield _of_one(name, "{} transposed", np.transpose)


def _swapped(shapes: Shapes) -> Iterator[Rearrangement]:
    for one, other in itertools.combinations(shapes, 2):
        if shapes[one] == shapes[other]:
            made = {one: itemgetter(other), other: itemgetter(one)}
            yield Rearrangement((one, other), "{} in each other's place", made)


def _parts_exchanged(shapes: Shapes) -> Iterator[Rearrangement]:
    """Layers whose gates have tensors of their own: all those of two gates, told by the ends of their names."""
    seen = set()
    for one, other in itertools.combinations(shapes, 2):
        ends = _ends(one, other)
        if ends is None or ends in seen:
            continue
        seen.add(ends)
        instead: dict[str, str] = {}
        for name in shapes:
            partner = _partner(name, ends)
            if shapes.get(partner) == shapes[name]:
                instead |= {name: partner, partner: name}
        if len(instead) > 2:  # two tensors alone are tried on their own
            made = {name: itemgetter(partner) for name, partner in instead.items()}
            words = f"what is named {ends[0]} and {ends[1]} exchanged in {{}}"
            yield Rearrangement(tuple(sorted(instead)), words, made)


def _ends(one: str, other: str) -> tuple[str, str] | None:
    """By what two names differ, if it is the end of one of their parts: ``i`` and ``f`` of ``hi.bias``, ``hf.bias``."""
    pairs = list(zip(_PARTS.split(one), _PARTS.split(other), strict=False))
    differing = [(a, b) for a, b in pairs if a != b]
    if len(differing) != 1 or len(_PARTS.split(one)) != len(_PARTS.split(other)):
        return None
    a, b = differing[0]
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return (a[common:], b[common:]) if a[common:] and b[common:] else None


def _partner(name: str, ends: tuple[str, str]) -> str:
    """The name with one end in place of the other, in the part nearest to its end that has it; empty: none."""
    parts = re.split(r"([./])", name)
    for k in range(len(parts) - 1, -1, -1):
        if parts[k].endswith(ends[0]):
            return "".join([*parts[:k], parts[k].removesuffix(ends[0]) + ends[1], *parts[k + 1 :]])
    return ""


def _flipped(shapes: Shapes) -> Iterator[Rearrangement]:
    for name, shape in shapes.items():
        window = tuple(range(len(shape) - 2))  # the axes of a convolution's window, at either end
        sides = [window, tuple(axis + 2 for axis in window)] if len(window) > 1 else []
        for axes in [*sides, *((axis,) for axis in range(len(shape)))]:
            words = f"{{}} reversed along {'axes' if len(axes) > 1 else 'axis'} {', '.join(map(str, axes))}"
            yield _of_one(name, words, partial(np.flip, axis=axes))


def _interleaved(shapes: Shapes) -> Iterator[Rearrangement]:
    """An axis that runs over two indices, in the other order: channels and pixels, heads and their dimensions."""
    known = {length for shape in shapes.values() for length in shape} | set(_N_BLOCKS)
    for name, shape in shapes.items():
        for axis, length in enumerate(shape):
            one = {n for n in known if 1 < n < length and length % n == 0}
            for outer in sorted(one | {length // n for n in one}):
                inner = length // outer
                words = f"axis {axis} of {{}} read as {inner} x {outer} instead of {outer} x {inner}"
                yield _of_one(name, words, partial(_exchanged, axis=axis, outer=outer))


def _exchanged(a: Array, axis: int, outer: int) -> Array:
    split = a.reshape(*a.shape[:axis], outer, a.shape[axis] // outer, *a.shape[axis + 1 :])
    return np.swapaxes(split, axis, axis + 1).reshape(a.shape)
