"""What JAX users have: a function of a pytree, or a pytree (a module) and a loss of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.backends.jax.model import JaxModel
from gradaudit.backends.jax.trees import path_of
from gradaudit.backends.keras import keras_function, keras_of

__all__ = ["adapted"]

#: The name of an array that stands alone.
_ALONE = "x"


def adapted(target: Any, at: Any, *, loss: Callable[..., Any] | None) -> JaxModel | None:
    """A function of the pytree ``at``, or the pytree ``target`` with a loss of it; None: neither holds JAX's arrays.

    Leaves that are no floating-point arrays stay what they are. A Flax NNX module is split into its parameters and
    the rest, which starts anew at every evaluation. A Keras model on JAX is one of its trainable variables.

    Raises:
        ModelContractError: a Keras model without a loss, or without a variable that is trained.
    """
    keras = keras_of(target, "jax")
    if keras is not None and at is None:
        of_paths, variables = keras_function(keras, target, loss)
        return JaxModel(of_paths, {path: np.asarray(variable.value) for path, variable in variables.items()})
    if loss is not None:
        found = _nnx(target, loss) if at is None else None
        function, tree = found if found is not None else (loss, target)
    else:
        function, tree = target, at
    if not callable(function) or tree is None:
        return None
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [leaf for _, leaf in paths]
    # NumPy arrays are somebody's whose gradient is written by hand, unless there is a loss without one
    if not any(isinstance(leaf, jax.Array) for leaf in leaves):
        return None
    names = {i: ".".join(path_of(path)) or _ALONE for i, (path, leaf) in enumerate(paths) if _is_real(leaf)}
    if not names:
        return None

    def of_named(p: dict[str, jax.Array]) -> Any:
        given = [p[names[i]] if i in names else leaf for i, leaf in enumerate(leaves)]
        return function(jax.tree_util.tree_unflatten(structure, given))

    return JaxModel(of_named, {name: np.asarray(leaves[i]) for i, name in names.items()})


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _nnx(module: Any, loss: Callable[..., Any]) -> tuple[Callable[..., Any], Any] | None:
    nnx = getattr(sys.modules.get("flax"), "nnx", None)
    if nnx is None or not isinstance(module, nnx.Module):
        return None
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)

    def of_parameters(p: Any) -> Any:
        dtype = next(leaf.dtype for leaf in jax.tree.leaves(p) if _is_real(leaf))
        # statistics are updated with what is computed from the parameters, and must hold its dtype
        state = jax.tree.map(lambda a: a.astype(dtype) if _is_real(a) else a, rest)
        given = jax.tree.unflatten(structure, jax.tree.leaves(p))
        return loss(nnx.merge(graph, given, state, copy=True))

    structure = jax.tree.structure(parameters)
    # plain dicts have the names that one would write, without ".value"
    return of_parameters, nnx.to_pure_dict(parameters)
