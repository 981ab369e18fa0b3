"""A training step of a Keras model or `tf.Module` that returns its gradient or gives it to an optimiser of Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Gradients, NamedArrays
from gradaudit.backends.keras import keras_of
from gradaudit.backends.stepped import SteppedModel, chosen, loss_among, unasked
from gradaudit.backends.tensorflow.adapt import adapted, inlined, variables_of
from gradaudit.backends.tensorflow.state import preserved

__all__ = ["step_model"]


def step_model(
    target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
) -> SteppedModel | None:
    """A Keras model on TensorFlow, or a `tf.Module`, and its step; None: neither.

    The gradient is what the step gives an optimiser of Keras, as that clips it; else what it returns. Nothing is
    updated: the optimiser only takes note, and all variables are put back.

    Args:
        target: the model.
        step: of it, applies or returns the gradient: in the order of ``trainable_variables``, or a dict by their names.
        loss: of it, the objective; None: what the step returns.
        sizes: by which a factor is named.
    """
    keras = keras_of(target, "tensorflow")
    if keras is None and (not isinstance(target, tf.Module) or isinstance(target, tf.Variable)):
        return None
    objective = adapted(target, None, loss=loss or unasked)
    assert objective is not None  # of such a target there is one
    trained = variables_of(target)
    every = target.variables if keras is None else [*target.variables, *getattr(target, "metrics_variables", [])]

    def run(p: NamedArrays) -> tuple[Any, list[dict[int, Any]]]:
        given: list[dict[int, Any]] = []
        # inlined: what a step that is a `tf.function` gives its optimiser is then a number
        with preserved(), _restored(every), inlined(), ExitStack() as stack:
            if keras is not None:
                stack.enter_context(_noted(keras.optimizers.Optimizer, given))
            for name, variable in trained.items():
                variable.assign(p[name])
            return step(target), given

    def named(found: Any) -> Mapping[str, Any] | None:
        if isinstance(found, Mapping):
            return {name: _dense(found.get(name)) for name in trained}
        if isinstance(found, (list, tuple)) and len(found) == len(trained):
            return {name: _dense(g) for name, g in zip(trained, found, strict=True)}
        return None

    def gradient(p: NamedArrays) -> Gradients:
        returned, given = run(p)
        mine = {id(variable): name for name, variable in trained.items()}
        seen = next((g for g in given if set(g) & set(mine)), None)
        return chosen(returned if seen is None else {mine[i]: g for i, g in seen.items() if i in mine}, p, named)

    def returned(p: NamedArrays) -> Any:
        return loss_among(run(p)[0], p, named)

    return SteppedModel(objective, gradient, sizes, returned=returned if loss is None else None)


def _dense(gradient: Any) -> Any:
    if not isinstance(gradient, (tf.Tensor, tf.IndexedSlices, np.ndarray)):
        return None
    return np.asarray(tf.convert_to_tensor(gradient))


@contextmanager
def _restored(variables: Any) -> Iterator[None]:
    """All these variables have their values of before afterwards."""
    before = [(variable, variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


@contextmanager
def _noted(optimizer: Any, given: list[dict[int, Any]]) -> Iterator[None]:
    """Optimisers of Keras note what they are given, clipped as they clip, and update nothing meanwhile."""
    before = optimizer.apply

    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        clipped = self._clip_gradients(list(grads))
        given.append({id(v): g for v, g in zip(variables, clipped, strict=True)})
        return self.iterations

    optimizer.apply = apply
    try:
        yield
    finally:
        optimizer.apply = before
