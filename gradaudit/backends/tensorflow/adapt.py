"""What TensorFlow users have: a function of tensors in containers, or a Keras model and a loss of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from gradaudit.backends.containers import flattened
from gradaudit.backends.tensorflow.model import TensorflowModel
from gradaudit.errors import ModelContractError
from gradaudit.protocols import Model

__all__ = ["adapted"]


def adapted(target: Any, at: Any, *, loss: Callable[..., Any] | None) -> Model | None:
    """A Keras model with a loss, or a function of the tensors or variables that ``at`` holds; None: neither.

    Raises:
        ModelContractError: a model without a loss, or without a variable that is trained.
    """
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(target, keras.Layer) and at is None:
        return _of_keras(keras, target, loss) if keras.config.backend() == "tensorflow" else None
    found = flattened(at, _is_trained) if callable(target) and loss is None else None
    if found is None:
        return None
    leaves, rebuilt = found
    return TensorflowModel(lambda p: target(rebuilt(p)), leaves)


def _of_keras(keras: Any, model: Any, loss: Callable[..., Any] | None) -> TensorflowModel:
    if loss is None:
        msg = f"a {type(model).__name__} alone has no loss"
        hint = "audit(model, loss=lambda model: tf.reduce_mean(keras.losses.mse(y, model(x))))"
        raise ModelContractError(msg, where="audit()", hint=hint)
    trained = list(model.trainable_variables)
    if not trained:
        msg = f"no variable of the {type(model).__name__} is trainable (was it built?)"
        raise ModelContractError(msg, where="audit()", hint="call the model once on its input, set trainable=True")

    def function(p: Mapping[str, Any]) -> Any:
        # what the model writes to its other variables (statistics, seeds) stays in the scope
        scope = keras.StatelessScope()
        # given to the scope itself, values would be rounded to the variables' dtype
        scope.state_mapping.update({id(variable): p[variable.path] for variable in trained})
        wide = all(value.dtype == tf.float64 for value in p.values())
        with _computing_in(keras, model, "float64" if wide else None), scope:
            return loss(model)

    return TensorflowModel(function, {variable.path: variable.numpy() for variable in trained})


@contextmanager
def _computing_in(keras: Any, model: Any, dtype: str | None) -> Iterator[None]:
    """Let all layers, and losses in this thread, compute in a dtype meanwhile; None: as they are."""
    layers = []
    if dtype is not None:
        # nothing public finds the layers inside layers
        layers = [layer for layer in model._flatten_layers() if hasattr(layer, "dtype_policy")]  # noqa: SLF001
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = dtype
        with _losses_in(keras, dtype):
            yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


@contextmanager
def _losses_in(keras: Any, dtype: str | None) -> Iterator[None]:
    """A loss object casts to the dtype that it was made with; nobody knows which one the user's function holds."""
    if dtype is None:
        yield
        return
    thread = threading.get_ident()
    with _lock:
        if not _wide:
            _original.append(keras.Loss.dtype)
            keras.Loss.dtype = property(lambda loss: _wide.get(threading.get_ident()) or _original[0].fget(loss))
        _wide[thread] = dtype
    try:
        yield
    finally:
        with _lock:
            del _wide[thread]
            if not _wide:
                keras.Loss.dtype = _original.pop()


_lock = threading.Lock()
_wide: dict[int, str] = {}
_original: list[Any] = []


def _is_trained(x: Any) -> bool:
    return isinstance(x, (tf.Tensor, tf.Variable)) and x.dtype.is_floating
