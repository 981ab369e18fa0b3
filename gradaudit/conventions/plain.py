"""Layers with a weight and a bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Array
from gradaudit.conventions.places import Places, Recipes, full, two

__all__ = ["DENSE", "EMBEDDING", "NORM", "Stored", "plain"]


def _as_stored(a: Array) -> Array:
    return a


def _reversed_pair(a: Array) -> Array:
    """(O, I, ...) as (..., I, O)."""
    return np.moveaxis(a, (0, 1), (-1, -2))


def _forward_pair(a: Array) -> Array:
    """(..., I, O) as (O, I, ...)."""
    return np.moveaxis(a, (-1, -2), (0, 1))


@dataclass(frozen=True, slots=True)
class Stored:
    """A layer's parameters in a library: their names, and the first one from and to PyTorch's layout."""

    weight: str
    bias: str = "bias"
    read: Callable[[Array], Array] = _as_stored
    write: Callable[[Array], Array] = _as_stored


_KERNEL = Stored("kernel", read=_forward_pair, write=_reversed_pair)
DENSE = {
    "torch": Stored("weight"),
    "keras": _KERNEL,
    "flax": _KERNEL,
    "nnx": _KERNEL,
    "equinox": Stored("weight"),
}
NORM = {
    "torch": Stored("weight"),
    "keras": Stored("gamma", "beta"),
    "flax": Stored("scale"),
    "nnx": Stored("scale"),
    "equinox": Stored("weight"),
}
EMBEDDING = {
    "torch": Stored("weight"),
    "keras": Stored("embeddings"),
    "flax": Stored("embedding"),
    "nnx": Stored("embedding"),
    "equinox": Stored("weight"),
}


def plain(table: Mapping[str, Stored], places: Places, *, bias: bool) -> Recipes:
    """The recipes of such a layer.

    Args:
        table: how each library stores it.
        places: the first model's, then the port's.
        bias: whether it has one.

    Raises:
        OptionError: not two places.
    """
    (library, place), (target, target_place) = two(places, table)
    source, port = table[library], table[target]
    weight = full(library, place, source.weight)
    recipes: Recipes = {full(target, target_place, port.weight): lambda p: port.write(source.read(p[weight]))}
    if bias:
        offset = full(library, place, source.bias)
        recipes[full(target, target_place, port.bias)] = lambda p: p[offset]
    return recipes
