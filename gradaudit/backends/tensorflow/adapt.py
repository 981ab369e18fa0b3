"""What TensorFlow users have: a function of tensors in containers, or a Keras model and a loss of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from gradaudit.backends.containers import flattened
from gradaudit.backends.keras import keras_function, keras_of
from gradaudit.backends.tensorflow.model import TensorflowModel
from gradaudit.protocols import Model

__all__ = ["adapted"]


def adapted(target: Any, at: Any, *, loss: Callable[..., Any] | None) -> Model | None:
    """A Keras model with a loss, or a function of the tensors or variables that ``at`` holds; None: neither.

    Raises:
        ModelContractError: a model without a loss, or without a variable that is trained.
    """
    keras = keras_of(target, "tensorflow")
    if keras is not None and at is None:
        function, variables = keras_function(keras, target, loss)
        return TensorflowModel(function, {path: variable.numpy() for path, variable in variables.items()})
    found = flattened(at, _is_trained) if callable(target) and loss is None else None
    if found is None:
        return None
    leaves, rebuilt = found
    return TensorflowModel(lambda p: target(rebuilt(p)), leaves)


def _is_trained(x: Any) -> bool:
    return isinstance(x, (tf.Tensor, tf.Variable)) and x.dtype.is_floating
