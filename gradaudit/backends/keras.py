"""Keras 3 models, on whichever framework Keras computes with: a pure function of their trainable variables.

Keras is handed over as a module: nothing here imports it, and its backend is the one that the user has chosen.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from gradaudit.errors import ModelContractError

__all__ = ["keras_function", "keras_of"]


def keras_of(target: Any, backend: str) -> Any | None:
    """Keras, if it is loaded, the target is a layer or model of it, and it computes with this framework.

    Args:
        target: what may be a Keras model.
        backend: tensorflow, torch or jax.
    """
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(target, keras.Layer):
        return None
    return keras if keras.config.backend() == backend else None


def keras_function(
    keras: Any, model: Any, loss: Callable[..., Any] | None
) -> tuple[Callable[[Mapping[str, Any]], Any], dict[str, Any]]:
    """A function of tensors by the variables' paths, and the trainable variables by path.

    What the model writes to its other variables (statistics, seeds) is forgotten after every evaluation. With float64
    tensors all layers compute in float64.

    Raises:
        ModelContractError: no loss, or no variable that is trained.
    """
    if loss is None:
        msg = f"a {type(model).__name__} alone has no loss"
        hint = "audit(model, loss=lambda model: keras.ops.mean(keras.losses.mean_squared_error(y, model(x))))"
        raise ModelContractError(msg, where="audit()", hint=hint)
    trained = {variable.path: variable for variable in model.trainable_variables}
    if not trained:
        msg = f"no variable of the {type(model).__name__} is trainable (was it built?)"
        raise ModelContractError(msg, where="audit()", hint="call the model once on its input, set trainable=True")
    of_model = loss

    def function(p: Mapping[str, Any]) -> Any:
        scope = keras.StatelessScope()
        # given to the scope itself, values would be rounded to the variables' dtype
        scope.state_mapping.update({id(variable): p[path] for path, variable in trained.items()})
        wide = all(keras.backend.standardize_dtype(value.dtype) == "float64" for value in p.values())
        with _computing_in(keras, model, "float64" if wide else None), scope:
            return of_model(model)

    return function, trained


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
    """A loss object casts to the dtype that it was made with; nobody knows which one the user's function holds.

    With PyTorch and JAX, Keras lets no promotion end in float64, as JAX does by default; meanwhile it may.
    """
    if dtype is None:
        yield
        return
    thread = threading.get_ident()
    with _lock:
        if not _wide:
            _original.append(keras.Loss.dtype)
            keras.Loss.dtype = property(lambda loss: _wide.get(threading.get_ident()) or _original[0].fget(loss))
            _narrowed.update({name: table[name] for table in _narrowing() for name in [dtype] if name in table})
            for table in _narrowing():
                table.update(dict.fromkeys(_narrowed, dtype))
        _wide[thread] = dtype
    try:
        yield
    finally:
        with _lock:
            del _wide[thread]
            if not _wide:
                keras.Loss.dtype = _original.pop()
                for table in _narrowing():
                    table.update(_narrowed)
                _narrowed.clear()


def _narrowing() -> list[dict[str, str]]:
    """Keras's table of what 64-bit dtypes become, which is private; none where a version has none."""
    table = getattr(sys.modules.get("keras.src.backend.common.dtypes"), "BIT64_TO_BIT32_DTYPE", None)
    return [] if table is None else [table]


_lock = threading.Lock()
_wide: dict[int, str] = {}
_original: list[Any] = []
_narrowed: dict[str, str] = {}
