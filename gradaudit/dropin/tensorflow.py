"""``compute_gradient`` as in `tf.test`: same arguments, the same two lists of Jacobians.

The numeric ones are exact to many digits, also in float32 where the function computes in float64 as well, so what a
test compares is the analytic gradient, not the step. ``delta`` is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Array
from gradaudit.numeric.jacobian import jacobian

__all__ = ["compute_gradient", "max_error"]


def compute_gradient(
    f: Callable[..., Any], x: Sequence[Any], delta: float | None = None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The analytic and the numeric Jacobians of a function, one (y_size, x_size) for each argument.

    Args:
        f: of tensors, returns a tensor.
        x: a list or tuple of what converts to tensors; real or complex floating-point. Of complex numbers real and
            imaginary parts count as two entries, one after the other.
        delta: not used.

    Raises:
        ValueError: x is neither list nor tuple; the result is empty and the gradient is not.
    """
    del delta
    if not isinstance(x, (list, tuple)):
        msg = f"`x` must be a list or tuple of values convertible to a Tensor (arguments to `f`), not a {type(x)}"
        raise ValueError(msg)  # noqa: TRY004  # as the original
    tensors = [tf.convert_to_tensor(value) for value in x]
    analytic = tuple(_analytic(f, tensors, i) for i in range(len(tensors)))
    numeric = tuple(_numeric(f, tensors, i) for i in range(len(tensors)))
    return analytic, numeric


def max_error(grad1: Sequence[Array], grad2: Sequence[Array]) -> float:
    """The largest difference of an entry between two lists of arrays."""
    gaps = [np.abs(a - b).max() for a, b in zip(grad1, grad2, strict=True) if a.size or b.size]
    return float(np.max(gaps, initial=0.0))  # NaN stays NaN


def _analytic(f: Callable[..., Any], tensors: Sequence[Any], i: int) -> Array:
    """Row by row: the gradient of each entry of the result."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(tensors[i])
        y = f(*tensors)
    size = _parts(np.asarray(tensors[i])).size
    n_outputs = _parts(np.asarray(y)).size
    rows = np.zeros((n_outputs, size), np.asarray(tensors[i]).real.dtype)
    for k in range(n_outputs):
        gradient = tape.gradient(y, tensors[i], output_gradients=_unit(np.asarray(y), k))
        if gradient is not None:
            rows[k] = _parts(np.asarray(tf.convert_to_tensor(gradient)))
    if not n_outputs and size:
        gradient = tape.gradient(y, tensors[i], output_gradients=tf.zeros_like(y))
        if gradient is not None and gradient.shape != tensors[i].shape:
            msg = f"Empty gradient has wrong shape: expected {tensors[i].shape}, got {gradient.shape}"
            raise ValueError(msg)
        if gradient is not None and np.any(np.asarray(tf.convert_to_tensor(gradient))):
            msg = "Empty tensor with nonzero gradients"
            raise ValueError(msg)
    return rows


def _unit(y: Array, k: int) -> Any:
    unit = np.zeros(_parts(y).size, y.real.dtype)
    unit[k] = 1
    return tf.constant(_joined(unit, y))


def _numeric(f: Callable[..., Any], tensors: Sequence[Any], i: int) -> Array:
    base = np.asarray(tensors[i])
    wide = _runs_in_double(f, tensors)
    given = [_wide(t) if wide else t for t in tensors]
    dtype = np.asarray(given[i]).dtype

    def result(values: Array) -> Array:
        moved = _joined(values, base).astype(dtype)
        return _parts(np.asarray(f(*given[:i], tf.constant(moved), *given[i + 1 :])))

    found, _ = jacobian(result, _parts(base).astype(np.float64))
    return np.asarray(found, base.real.dtype)


def _runs_in_double(f: Callable[..., Any], tensors: Sequence[Any]) -> bool:
    try:
        y = f(*[_wide(t) for t in tensors])
    except Exception:  # noqa: BLE001  # whatever the function raises, float64 is not for it
        return False
    return bool(y.dtype in (tf.float64, tf.complex128))


def _wide(tensor: Any) -> Any:
    wider = {tf.float32: tf.float64, tf.complex64: tf.complex128}
    return tf.cast(tensor, wider[tensor.dtype]) if tensor.dtype in wider else tensor


def _parts(array: Array) -> Array:
    """The entries, (n,); of complex ones real and imaginary parts, one after the other, (2 n,)."""
    if not np.iscomplexobj(array):
        return array.reshape(-1)
    return np.stack([array.real, array.imag], axis=-1).reshape(-1)


def _joined(parts: Array, like: Array) -> Array:
    if not np.iscomplexobj(like):
        return parts.reshape(like.shape)
    pairs = parts.reshape(-1, 2)
    return np.asarray((pairs[:, 0] + 1j * pairs[:, 1]).reshape(like.shape).astype(like.dtype))
