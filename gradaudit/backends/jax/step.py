"""A training step over a pytree of JAX's arrays that returns its gradient, and the loss that it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from gradaudit.arrays import Gradients, NamedArrays
from gradaudit.backends.jax.adapt import adapted, is_nnx
from gradaudit.backends.jax.state import precision
from gradaudit.backends.jax.trees import flattened
from gradaudit.backends.keras import keras_of
from gradaudit.backends.stepped import SteppedModel, chosen, loss_among
from gradaudit.errors import ModelContractError

__all__ = ["step_model"]


def step_model(
    target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
) -> SteppedModel | None:
    """A pytree (a module) of JAX's arrays and its step; None: it holds none.

    Args:
        target: the parameters.
        step: of them, returns their gradient, or a tuple with it: what is given to the optimiser, or what a chain of
            transformations makes of it.
        loss: of them, the objective; None: what the step returns.
        sizes: by which a factor is named.

    Raises:
        ModelContractError: a module that is no pytree.
    """
    if is_nnx(target) or keras_of(target, "jax") is not None:
        msg = f"a {type(target).__name__} is no pytree"
        hint = "give its parameters as a pytree (nnx.split), and a step and a loss of that"
        raise ModelContractError(msg, where="audit_step()", hint=hint)
    found = flattened(target)
    if found is None:
        return None
    leaves, rebuilt = found

    def named(x: Any) -> Mapping[str, Any] | None:
        opened = flattened(x)
        if opened is None or not opened[0].keys() <= leaves.keys():
            return None
        return {name: opened[0].get(name) for name in leaves}

    def returned(tree: Any) -> Any:
        return loss_among(step(tree), leaves, named)

    objective = adapted(target, None, loss=loss or returned)
    if objective is None:
        return None

    def gradient(p: NamedArrays) -> Gradients:
        with precision(p):
            return chosen(step(rebuilt({n: jnp.asarray(a) for n, a in p.items()})), p, named)

    return SteppedModel(objective, gradient, sizes)
