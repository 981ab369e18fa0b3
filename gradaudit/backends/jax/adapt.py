"""What JAX users have: a function of a pytree, or a pytree (a module) and a loss of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gradaudit.backends.jax.model import JaxModel
from gradaudit.backends.jax.trees import flattened, is_array
from gradaudit.backends.keras import keras_function, keras_of

__all__ = ["adapted", "is_nnx"]


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
    opened = flattened(tree)
    if opened is None:
        return None
    leaves, rebuilt = opened
    return JaxModel(lambda p: function(rebuilt(p)), {name: np.asarray(leaf) for name, leaf in leaves.items()})


def is_nnx(target: Any) -> bool:
    """Whether something is a Flax NNX module."""
    nnx = getattr(sys.modules.get("flax"), "nnx", None)
    return nnx is not None and isinstance(target, nnx.Module)


def _nnx(module: Any, loss: Callable[..., Any]) -> tuple[Callable[..., Any], Any] | None:
    if not is_nnx(module):
        return None
    nnx = sys.modules["flax"].nnx
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)

    def of_parameters(p: Any) -> Any:
        dtype = next(leaf.dtype for leaf in jax.tree.leaves(p) if is_array(leaf))
        # statistics are updated with what is computed from the parameters, and must hold its dtype
        state = jax.tree.map(lambda a: a.astype(dtype) if is_array(a) else a, rest)
        given = jax.tree.unflatten(structure, jax.tree.leaves(p))
        return loss(nnx.merge(graph, given, state, copy=True))

    structure = jax.tree.structure(parameters)
    # plain dicts have the names that one would write, without ".value"
    return of_parameters, nnx.to_pure_dict(parameters)
