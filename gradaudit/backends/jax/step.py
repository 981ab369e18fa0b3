"""A training step over a pytree of JAX's arrays that returns its gradient, and the loss that it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays
from gradaudit.backends.jax.adapt import adapted, is_nnx
from gradaudit.backends.jax.state import precision
from gradaudit.backends.jax.trees import flattened
from gradaudit.backends.keras import keras_of
from gradaudit.backends.stepped import SteppedModel, chosen
from gradaudit.errors import ModelContractError

__all__ = ["step_model"]


def step_model(
    target: Any, step: Callable[..., Any], *, loss: Callable[..., Any], sizes: Mapping[str, int]
) -> SteppedModel | None:
    """A pytree (a module) of JAX's arrays and its step; None: it holds none.

    Args:
        target: the parameters.
        step: of them, returns their gradient, or a tuple with it: what is given to the optimiser, or what a chain of
            transformations makes of it.
        loss: of them, the objective.
        sizes: by which a factor is named.

    Raises:
        ModelContractError: a module that is no pytree.
    """
    if is_nnx(target) or keras_of(target, "jax") is not None:
        msg = f"a {type(target).__name__} is no pytree"
        hint = "give its parameters as a pytree (nnx.split), and a step and a loss of that"
        raise ModelContractError(msg, where="audit_step()", hint=hint)
    objective = adapted(target, None, loss=loss)
    found = flattened(target)
    if objective is None or found is None:
        return None
    _, rebuilt = found

    def gradient(p: NamedArrays) -> Gradients:
        def named(returned: Any) -> Mapping[str, Any] | None:
            leaves = flattened(returned)
            return None if leaves is None else {n: _as_array(leaves[0].get(n)) for n in p} if leaves[0] else None

        with precision(p):
            return chosen(step(rebuilt({n: jnp.asarray(a) for n, a in p.items()})), p, named)

    return SteppedModel(objective, gradient, sizes)


def _as_array(x: Any) -> Array | None:
    return np.asarray(x) if isinstance(x, (jax.Array, np.ndarray)) else None
