"""A training step over NumPy arrays that returns its gradient, and the loss that it is meant for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gradaudit.arrays import Gradients, NamedArrays
from gradaudit.backends.numpy.adapt import adapted
from gradaudit.backends.stepped import SteppedModel, chosen, loss_among

__all__ = ["step_model"]


def step_model(
    target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
) -> SteppedModel | None:
    """An array, or a mapping of names to arrays, and its step; None: neither.

    Args:
        target: the parameters.
        step: of them, returns their gradient, or a tuple with it.
        loss: of them, the objective; None: what the step returns.
        sizes: by which a factor is named.
    """
    arrays = list(target.values()) if isinstance(target, Mapping) else [target]
    if not arrays or not all(isinstance(a, np.ndarray) for a in arrays):
        return None

    def returned(at: Any) -> Any:
        return loss_among(step(at), parameters, named)

    objective = adapted(loss or returned, target, gradient=step)
    if objective is None:
        return None
    parameters = objective.parameters()
    alone = None if isinstance(target, Mapping) else next(iter(parameters))

    def named(found: Any) -> Mapping[str, Any] | None:
        if alone is not None:
            return None if isinstance(found, Mapping) else {alone: found}
        return found if isinstance(found, Mapping) else None

    def gradient(p: NamedArrays) -> Gradients:
        return chosen(step(dict(p) if alone is None else p[alone]), p, named)

    return SteppedModel(objective, gradient, sizes)
