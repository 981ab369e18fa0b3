"""A NumPy loss with its gradient, as a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar, frozen_copy
from gradaudit.direction import Point, displace, stack
from gradaudit.errors import OptionError

__all__ = ["NumpyModel", "environment"]


def environment() -> Mapping[str, str]:
    """NumPy's version."""
    return {"backend": "numpy", "numpy": np.__version__}


@final
class NumpyModel:
    """A loss and its gradient, both functions of a dict of named arrays.

    Args:
        loss: parameters -> one number.
        parameters: the base point, floating-point arrays by name.
        gradient: parameters -> {name: array or None}; or ``value_and_grad``.
        value_and_grad: parameters -> (loss, gradients); used instead of ``gradient`` where given.
        batched: parameters with a leading axis K -> (K,) losses.
        jvp: (parameters, tangents) -> directional derivative; by default ``<gradient, tangents>``.
        point_bytes: working memory of one point in ``batched``; by default the size of the parameters.
        analytic: the loss is an analytic function and computes in complex arithmetic (no abs, max, comparison or
            conjugate on the way): derivatives are then taken by complex steps, after a check.
        any_dtype: the functions compute in the dtype of the parameters that they are given: a float32 model then has a
            float64 twin, which supplies the numbers.
    """

    def __init__(
        self,
        loss: Callable[[NamedArrays], Any],
        parameters: NamedArrays,
        *,
        gradient: Callable[[NamedArrays], Gradients] | None = None,
        value_and_grad: Callable[[NamedArrays], tuple[Any, Gradients]] | None = None,
        batched: Callable[[NamedArrays], Array] | None = None,
        jvp: Callable[[NamedArrays, NamedArrays], float] | None = None,
        point_bytes: int | None = None,
        analytic: bool = False,
        any_dtype: bool = False,
    ) -> None:
        if gradient is None and value_and_grad is None:
            msg = "NumPy has no automatic differentiation"
            raise OptionError(msg, where="NumpyModel", hint="pass gradient=, a function of the parameters")
        self._loss = loss
        self._gradient = gradient
        self._value_and_grad = value_and_grad
        self._batched = batched
        self._jvp = jvp
        self._analytic = analytic
        self._any_dtype = any_dtype
        self._parameters = frozen_copy({name: np.asarray(p) for name, p in parameters.items()})
        self._point_bytes = point_bytes or sum(p.nbytes for p in self._parameters.values())

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss as a NumPy scalar.

        Raises:
            ModelContractError: it is not one real floating-point number.
        """
        return as_scalar(self._loss(parameters), "loss()")

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and the gradient as the user's code gives it.

        Raises:
            ModelContractError: the loss is not one real floating-point number.
        """
        if self._value_and_grad is not None:
            loss, gradients = self._value_and_grad(parameters)
        else:
            assert self._gradient is not None  # one of the two is there, see __init__
            loss, gradients = self._loss(parameters), self._gradient(parameters)
        arrays = {name: None if g is None else np.asarray(g) for name, g in gradients.items()}
        return as_scalar(loss, "value_and_grad()"), arrays

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """The directional derivative: the user's forward mode, or <gradient, tangents>."""
        if self._jvp is not None:
            return float(self._jvp(parameters, tangents))
        _, gradients = self.value_and_grad(parameters)
        return float(sum((g * tangents[name]).sum() for name, g in gradients.items() if g is not None))

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        return self._point_bytes

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,)."""
        if self._batched is not None:
            return np.asarray(self._batched(stack(self._parameters, points)))
        return np.array([self.loss(displace(self._parameters, point)) for point in points])

    def complex_loss(self, parameters: NamedArrays) -> complex | None:
        """The loss at complex parameters; None unless it was declared analytic."""
        return complex(self._loss(parameters)) if self._analytic else None

    def twin(self) -> NumpyModel | None:
        """The same functions of float64 parameters; None if they are float64 already, or it was not declared."""
        if not self._any_dtype or all(p.dtype == np.float64 for p in self._parameters.values()):
            return None
        return self.at({name: p.astype(np.float64) for name, p in self._parameters.items()})

    def at(self, parameters: NamedArrays) -> NumpyModel:
        """The same functions at another base point."""
        before, now = (sum(p.nbytes for p in arrays.values()) for arrays in (self._parameters, parameters))
        return NumpyModel(
            self._loss,
            parameters,
            gradient=self._gradient,
            value_and_grad=self._value_and_grad,
            batched=self._batched,
            jvp=self._jvp,
            point_bytes=self._point_bytes * now // before,
            analytic=self._analytic,
            any_dtype=self._any_dtype,
        )

    def preserved(self) -> AbstractContextManager[None]:
        """NumPy keeps no state but its random generator, which the auditor preserves for everybody."""
        return nullcontext()

    def environment(self) -> Mapping[str, str]:
        """NumPy's version."""
        return environment()
