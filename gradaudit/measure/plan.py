"""Which directions are probed: the whole model, along the gradient, tensor by tensor, small tensors by entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays
from gradaudit.direction import Direction, entry_direction, random_direction

__all__ = [
    "Probe",
    "along_signs",
    "entries",
    "fresh",
    "is_small",
    "longer",
    "more",
    "scales",
    "second_stage",
    "tensors",
    "whole_model",
]

#: Beyond this spread of sizes (the largest to the tenth part's upper end) a common step is too long for some entries
#: and too short for others; normally distributed weights stay below it at any size.
_HETEROGENEOUS = 100.0
#: A small tensor is read entry by entry anyway: there, steps by entry cost no detectability.
_HETEROGENEOUS_SMALL = 10.0
#: Parameters of sizes from 1e-8 to 1e8 are all there.
_NOTHING = 1e-20
#: A tensor below this share of the typical one is small beside it.
_SMALL = 0.1
#: Tensors up to this size are read entry by entry, all together up to the second number.
_SMALL_TENSOR = 16
_ALL_ENTRIES = 64
_SINGLE_DIRECTIONS = 3
#: Between the seeds of directions that belong together.
_STRIDE = 1_000_003
_FIRST_MORE = 100


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A direction and the tensor it belongs to, None for the whole model."""

    direction: Direction
    tensor: str | None


def scales(parameters: NamedArrays) -> dict[str, float | Array]:
    """The typical size of a step in each tensor: its rms, or entry by entry where it is heterogeneous.

    What is nothing beside the largest tensor, as weights that have decayed to 1e-30, counts as zero: steps of its own
    size would move no loss. Empty tensors have none.
    """
    alive, default = _alive(parameters)
    return {name: _scale(size, _rms(size) or default) for name, size in alive.items()}


def longer(parameters: NamedArrays, names: Sequence[str]) -> dict[str, float | Array]:
    """Steps of the typical tensor's size for those of these tensors that are small beside it."""
    alive, default = _alive(parameters)
    return {name: default for name in names if _rms(alive[name]) < _SMALL * default}


def _alive(parameters: NamedArrays) -> tuple[dict[str, Array], float]:
    """The sizes of the entries, what is nothing as zero; and the typical tensor's rms."""
    sizes = {name: np.abs(p.astype(np.float64)) for name, p in parameters.items() if p.size}
    least = _NOTHING * max(map(_rms, sizes.values()), default=0.0)
    alive = {name: np.where(size < least, 0.0, size) for name, size in sizes.items()}
    nonzero = [size for size in map(_rms, alive.values()) if size > 0]
    return alive, float(np.median(nonzero)) if nonzero else 1.0


def _rms(size: Array) -> float:
    return float(np.sqrt(np.mean(np.square(size))))


def _scale(size: Array, typical: float) -> float | Array:
    positive = size[size > 0]
    if not positive.size:
        return typical
    small = size.size <= _SMALL_TENSOR
    least = positive.min() if small else np.quantile(positive, 0.1)
    if positive.max() > (_HETEROGENEOUS_SMALL if small else _HETEROGENEOUS) * least:
        return np.where(size > 0, size, np.quantile(positive, 0.25))
    return typical


def whole_model(lengths: dict[str, float | Array], seed: int) -> Probe:
    """All tensors at once: one error anywhere shows."""
    return Probe(random_direction("whole model", lengths, seed), None)


def along_signs(lengths: dict[str, float | Array], gradients: Gradients, seed: int) -> list[Probe]:
    """Along sign(g): nothing cancels, so a common factor shows sqrt(P) times better. Nothing where g is zero."""
    signs = {name: np.sign(g) for name, g in gradients.items() if g is not None and np.isfinite(g).all() and g.any()}
    if not signs:
        return []
    lengths = {name: lengths[name] for name in signs}
    return [Probe(Direction(label="the gradient", scales=lengths, seed=seed, signs=signs), None)]


def second_stage(lengths: dict[str, float | Array], gradients: Gradients, seed: int, *, double: bool) -> list[Probe]:
    """What follows the first estimate, tensor by tensor, asked for at once.

    Float32 losses have coarse bounds: there each tensor gets more directions, and one along its own gradient.
    """
    names = list(lengths)
    if double:
        return tensors(lengths, names, seed)
    probes: list[Probe] = []
    for i in range(_SINGLE_DIRECTIONS):
        probes += tensors(lengths, names, seed + _STRIDE * i)
    own = [(name, along_signs(lengths, {name: gradients[name]}, seed)) for name in names]
    return probes + [Probe(p.direction, name) for name, found in own for p in found]


def tensors(lengths: dict[str, float | Array], names: Sequence[str], seed: int) -> list[Probe]:
    """One direction a tensor, so that a small bias is never drowned by a large matrix."""
    return [Probe(random_direction(name, {name: lengths[name]}, seed), name) for name in names]


def more(lengths: dict[str, float | Array], name: str, seed: int, n: int, after: int) -> list[Probe]:
    """Return n more directions of one tensor, other than the first ``after``, so that no error cancels in them all."""
    seeds = [seed + _STRIDE * (_FIRST_MORE + after + i) for i in range(n)]
    return [probe for own in seeds for probe in tensors(lengths, [name], own)]


def fresh(lengths: dict[str, float | Array], names: Sequence[str], seed: int) -> list[Probe]:
    """Other directions of the same tensors, to confirm."""
    return tensors(lengths, names, seed + 1)


def is_small(size: int) -> bool:
    """Whether a tensor of that many entries is read entry by entry."""
    return size <= _SMALL_TENSOR


def entries(parameters: NamedArrays, lengths: dict[str, float | Array], names: Sequence[str]) -> list[Probe]:
    """Every entry of the small tensors, the smallest first, while they are few in all."""
    probes: list[Probe] = []
    for name in sorted(names, key=lambda n: parameters[n].size):
        size = parameters[name].size
        if not is_small(size) or len(probes) + size > _ALL_ENTRIES:
            break
        length = np.broadcast_to(lengths[name], parameters[name].shape)
        indices = np.ndindex(parameters[name].shape)
        probes += [Probe(entry_direction(name, index, float(length[index])), name) for index in indices]
    return probes
