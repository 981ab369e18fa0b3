"""Pytrees: their floating-point leaves by name, and how to put others there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["flattened", "is_array", "path_of"]

#: The name of an array that stands alone.
_ALONE = "x"


def path_of(path: Any) -> list[str]:
    """The parts of a path, without JAX's brackets and quotes: ``layers``, ``0``, ``weight``."""
    return [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]


def flattened(tree: Any) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]] | None:
    """The real floating-point arrays of a pytree by path, ``layers.0.weight``, and the tree with others in their place.

    Other leaves stay what they are. None: there is no array of JAX among the leaves, or none to differentiate by.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [leaf for _, leaf in paths]
    # NumPy arrays are somebody's whose gradient is written by hand, unless there is one of JAX
    if not any(isinstance(leaf, jax.Array) for leaf in leaves):
        return None
    names = {i: ".".join(path_of(path)) or _ALONE for i, (path, leaf) in enumerate(paths) if is_array(leaf)}

    def rebuilt(values: Mapping[str, Any]) -> Any:
        given = [values[names[i]] if i in names else leaf for i, leaf in enumerate(leaves)]
        return jax.tree_util.tree_unflatten(structure, given)

    return ({name: leaves[i] for i, name in names.items()}, rebuilt) if names else None


def is_array(leaf: Any) -> bool:
    """Whether a leaf is a real floating-point array."""
    return isinstance(leaf, (jax.Array, np.ndarray)) and bool(jnp.issubdtype(leaf.dtype, jnp.floating))
