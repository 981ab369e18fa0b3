"""Directions and points: a few bytes that say where numbers are wanted, the same on every backend.

The engine owns (direction, t); `displace` and `stack` own the rounding, x = p + round(t * v) in the dtype of the
parameter; a model only decides how to visit the points (batch axis, vmap, loop).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays

__all__ = ["Direction", "Point", "argument_rounding", "displace", "entry_direction", "random_direction", "stack"]


#: Tensors of so many entries at most are drawn once; a judgement asks for them again and again.
_SMALL = 4096


@lru_cache(maxsize=256)
def _drawn(seed: int, name: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Lengths U(0.5, 1.5) and random signs."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return rng.uniform(0.5, 1.5, shape), rng.choice(np.array([-1.0, 1.0]), shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Direction:
    """A direction v in parameter space, zero outside its support.

    Attributes:
        label: how a report names it.
        scales: the support: the typical length of an entry of v, by tensor (or entry by entry).
        seed: with it, the tensor's name and its shape, ``v_i = scale_i * sign_i * U(0.5, 1.5)``, sign_i random.
        signs: where given, these signs instead of random ones (to go along a gradient).
        entry: where given, v is ``scale`` at this one index of its one tensor.
    """

    label: str
    scales: Mapping[str, float | Array]
    seed: int = 0
    signs: Mapping[str, Array] | None = None
    entry: tuple[int, ...] | None = None

    def block(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """The part of v that lies in one tensor, float64, or None where v does not touch it."""
        scale = self.scales.get(name)
        if scale is None:
            return None
        if self.entry is not None:
            unit = np.zeros(shape)
            unit[self.entry] = scale
            return unit
        drawn = _drawn if math.prod(shape) <= _SMALL else _drawn.__wrapped__
        length, sign = drawn(self.seed, name, shape)
        return np.asarray(scale * (sign if self.signs is None else self.signs[name]) * length)

    @property
    def length(self) -> float:
        """The displacement of the entry of an entry direction."""
        (scale,) = self.scales.values()
        return float(scale)

    def dot(self, gradients: Gradients) -> float:
        """<g, v> in float64; a missing gradient counts as zero."""
        return float(sum(p.sum() for p in self._products(gradients)))

    def norm(self, gradients: Gradients) -> float:
        """||g * v||_2 (entrywise product): the size that <g, v> has when nothing cancels by chance."""
        return float(np.sqrt(sum((p * p).sum() for p in self._products(gradients))))

    def reach(self, gradients: Gradients) -> float:
        """The size that rounding of g is relative to: `norm`, for one entry that of its whole tensor.

        An entry is a sum that cancels; what rounds are its terms, and those are as large as its neighbours' are.
        """
        if self.entry is None:
            return self.norm(gradients)
        (name, scale), *_ = self.scales.items()
        gradient = gradients.get(name)
        return 0.0 if gradient is None else float(scale * np.linalg.norm(np.asarray(gradient, np.float64)))

    def _products(self, gradients: Gradients) -> list[Array]:
        products = []
        for name, gradient in gradients.items():
            if gradient is not None and (v := self.block(name, gradient.shape)) is not None:
                products.append(np.asarray(gradient, np.float64) * v)
        return products


@dataclass(frozen=True, slots=True)
class Point:
    """The parameters p + t v."""

    direction: Direction
    t: float


@dataclass(slots=True)
class _Blocks:
    """v is made once per direction, not once per point."""

    parameters: NamedArrays
    made: dict[tuple[int, str], Array | None] = field(default_factory=dict)

    def __call__(self, direction: Direction, name: str) -> Array | None:
        key = (id(direction), name)
        if key not in self.made:
            self.made[key] = direction.block(name, self.parameters[name].shape)
        return self.made[key]


def displace(parameters: NamedArrays, point: Point) -> dict[str, Array]:
    """Fresh copies of the parameters at one point, in their own dtypes."""
    moved = {}
    for name, base in parameters.items():
        v = point.direction.block(name, base.shape)
        moved[name] = base.copy() if v is None else base + (point.t * v).astype(base.dtype)
    return moved


def stack(parameters: NamedArrays, points: Sequence[Point]) -> dict[str, Array]:
    """The parameters at K points, each tensor as (K, *shape): what a batch axis or vmap takes."""
    blocks = _Blocks(parameters)
    stacked = {}
    for name, base in parameters.items():
        out = np.repeat(base[None], len(points), axis=0)
        for k, point in enumerate(points):
            if (v := blocks(point.direction, name)) is not None:
                out[k] += (point.t * v).astype(base.dtype)
        stacked[name] = out
    return stacked


def argument_rounding(parameters: NamedArrays, points: Sequence[Point], gradients: Gradients) -> Array:
    """``<g, x(t) - (p + t v)>`` for each point, (K,): what rounding the arguments did to the loss, to first order.

    Subtracting it makes the numeric derivative that of the intended displacement, if g is right; if g is wrong, it
    stays what it was: noise.
    """
    blocks = _Blocks(parameters)
    effect = np.zeros(len(points))
    for name, base in parameters.items():
        gradient = gradients[name]
        if gradient is None or not np.isfinite(gradient).all():
            continue
        exact = np.asarray(base, np.float64)
        for k, point in enumerate(points):
            if (v := blocks(point.direction, name)) is not None:
                moved = base + (point.t * v).astype(base.dtype)
                effect[k] += float((gradient * (np.asarray(moved, np.float64) - exact - point.t * v)).sum())
    return effect


def random_direction(label: str, scales: Mapping[str, float | Array], seed: int) -> Direction:
    """Random signs and lengths over the tensors in ``scales``.

    Lengths vary because pure signs would miss two swapped entries with probability 1/2.
    """
    return Direction(label=label, scales=scales, seed=seed)


def entry_direction(name: str, index: tuple[int, ...], scale: float) -> Direction:
    """One entry of one tensor, displaced by ``scale``."""
    label = f"{name}[{', '.join(map(str, index))}]" if index else name
    return Direction(label=label, scales={name: scale}, entry=index)
