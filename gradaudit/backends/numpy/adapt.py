"""What NumPy users have: a loss and its gradient, of one vector as `scipy.optimize` wants them, or of named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays
from gradaudit.backends.numpy.model import NumpyModel
from gradaudit.errors import ModelContractError

__all__ = ["adapted"]

#: The name of the one array of a function that takes one.
_ALONE = "x"


def adapted(target: Any, at: Any, *, gradient: Callable[..., Any] | bool | None) -> NumpyModel | None:
    """A loss and its gradient as a model; None without a gradient.

    Of float32 it offers a float64 twin: most NumPy code, and HIPS autograd, computes in the dtype that it is given. The
    twin is used if its loss is a float64 number, and the same.

    Args:
        target: ``at`` -> the loss, or (loss, gradient) where ``gradient`` is True.
        at: an array, anything that NumPy makes one of, or a mapping of names to arrays.
        gradient: ``at`` -> its gradient, of the same form as ``at``; or True.

    Raises:
        ModelContractError: the gradient does not have the form of ``at``, or has a name that no parameter has.
    """
    if not callable(target) or at is None or not gradient:
        return None
    named = isinstance(at, Mapping)
    parameters = {name: _real(array) for name, array in (at if named else {_ALONE: at}).items()}

    def given(p: NamedArrays) -> Any:
        return dict(p) if named else p[_ALONE]

    def gradients(found: Any) -> Gradients:
        if not named:
            return {_ALONE: _of_shape(found, parameters[_ALONE])}
        if not isinstance(found, Mapping):
            msg = f"the parameters are a {type(at).__name__}, but the gradient is a {type(found).__name__}"
            raise ModelContractError(msg, where="gradient", hint="return a dict with the same names")
        if extra := [name for name in found if name not in parameters]:
            msg = f"the gradient has {', '.join(map(repr, extra))}, and no parameter is called so"
            hint = f"the parameters are {', '.join(map(repr, parameters))}; None where there is no gradient"
            raise ModelContractError(msg, where="gradient", hint=hint)
        return {name: None if (g := found.get(name)) is None else _of_shape(g, parameters[name]) for name in parameters}

    if callable(gradient):
        of = gradient
        return NumpyModel(
            lambda p: target(given(p)), parameters, gradient=lambda p: gradients(of(given(p))), any_dtype=True
        )

    def value_and_grad(p: NamedArrays) -> tuple[Any, Gradients]:
        loss, found = target(given(p))
        return loss, gradients(found)

    return NumpyModel(lambda p: target(given(p))[0], parameters, value_and_grad=value_and_grad, any_dtype=True)


def _real(array: Any) -> Array:
    """An array of its own floating-point dtype; whole numbers become float64."""
    found = np.asarray(array)
    return found if np.issubdtype(found.dtype, np.inexact) else found.astype(np.float64)


def _of_shape(gradient: Any, parameter: Array) -> Array:
    """The gradient in the parameter's dtype; `scipy.optimize` takes lists, too."""
    found = np.asarray(gradient)
    return found.astype(parameter.dtype) if np.issubdtype(found.dtype, np.integer) else found
