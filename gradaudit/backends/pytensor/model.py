"""A PyTensor loss over named tensors, as a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, TypeAlias, final

import numpy as np
import pytensor
from pytensor import tensor as pt
from pytensor.gradient import NullTypeGradError
from pytensor.graph.replace import vectorize_graph

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar, frozen_copy
from gradaudit.backends.pytensor import cuts
from gradaudit.backends.pytensor.graphs import rebuilt
from gradaudit.backends.pytensor.modes import LIGHT, lighter
from gradaudit.backends.pytensor.state import free_inputs, is_generator, preserved, shared_inputs
from gradaudit.direction import Point, displace, stack
from gradaudit.errors import ModelContractError
from gradaudit.sites import Cut

__all__ = ["Evaluation", "PytensorModel", "Tensors", "compiled", "environment"]

Tensors: TypeAlias = dict[str, Any]


def environment() -> Mapping[str, str]:
    """PyTensor's version."""
    return {"backend": "pytensor", "pytensor": pytensor.__version__}


class Evaluation:
    """A symbolic function of named tensors, compiled at its first call.

    Args:
        function: symbolic tensors by name -> a symbolic tensor of any shape.
        like: arrays with the names, shapes and dtypes of the arguments.
        copies: the arguments have a leading axis of any length.
    """

    def __init__(self, function: Callable[[Tensors], Any], like: NamedArrays, *, copies: bool = False) -> None:
        self._function = function
        self._like = like
        self._copies = copies

    def __call__(self, parameters: NamedArrays) -> Array:
        """The value at these arrays."""
        return np.array(self._compiled(*(parameters[name] for name in self._like)))

    @cached_property
    def _compiled(self) -> Any:
        inputs = _symbols(self._like, copies=self._copies)
        return compiled(list(inputs.values()), self._function(inputs), LIGHT)


@final
class PytensorModel:
    """A function from a dict of symbolic tensors to a symbolic number.

    Losses are evaluated with NumPy behind each operation, see `gradaudit.backends.pytensor.modes`; the gradient, which
    is what is audited, is compiled in the mode that the user's own functions have; the two draw the same random numbers
    only if compiled alike, so a graph with random generators is evaluated so as a whole.

    Args:
        function: it is called with a symbolic tensor of each parameter's shape and dtype. Shared variables that the
            graph holds are data.
        parameters: the base point: floating-point arrays or shared variables by name, which are copied.
        batched: tensors with a leading axis K -> (K,) losses; by default `vectorize_graph`, and a loop over the points
            where that has no rule, as for `ifelse`.
        point_bytes: working memory of one point in a batch; by default some copies of the parameters.
        mode: in which the gradient is compiled; None: ``pytensor.config.mode``.
    """

    def __init__(
        self,
        function: Callable[[Tensors], Any],
        parameters: Mapping[str, Any],
        *,
        batched: Callable[[Tensors], Any] | None = None,
        point_bytes: int | None = None,
        mode: Any = None,
    ) -> None:
        self._function = function
        self._parameters = frozen_copy({name: value_of(p) for name, p in parameters.items()})
        self._given = batched
        self._mode = mode
        self._point_bytes = point_bytes or _COPIES * sum(p.nbytes for p in self._parameters.values())

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss as a NumPy scalar.

        Raises:
            ModelContractError: it is not one real floating-point number, or it needs an input that has no value.
        """
        return as_scalar(self._loss_at(*self._arrays(parameters)), "loss()")

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its gradient by `pytensor.grad`; None where the loss does not depend on a parameter.

        Raises:
            ModelContractError: the loss is not one real floating-point number, or an operation has no gradient.
        """
        loss, *found = self._gradient_at(*self._arrays(parameters))
        arrays = iter(found)
        gradients = {n: None if g is None else np.array(next(arrays)) for n, g in self._gradients.items()}
        return as_scalar(loss, "value_and_grad()"), gradients

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """The directional derivative, <gradient, tangents>.

        PyTensor's own `pushforward` is a pullback of the pullback, so it would say no more; and of a truncated scan it
        is not the derivative that the pullback is (3.0.7).
        """
        _, gradients = self.value_and_grad(parameters)
        return float(sum((g * tangents[name]).sum() for name, g in gradients.items() if g is not None))

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        return self._point_bytes

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,): ``batched``, or `vectorize_graph`, or one by one where that fails."""
        if self._batched is None or len(points) < 2:
            return np.array([self.loss(displace(self._parameters, point)) for point in points])
        losses = self._batched(stack(self._parameters, points))
        if losses.shape != (len(points),):
            msg = f"{len(points)} points gave losses of shape {losses.shape}"
            raise ModelContractError(msg, where="along()", hint="return one loss for each point")
        return losses

    def at(self, parameters: NamedArrays) -> PytensorModel:
        """The same function at another base point."""
        before, now = (sum(np.asarray(p).nbytes for p in arrays.values()) for arrays in (self._parameters, parameters))
        point_bytes = self._point_bytes * now // before
        return PytensorModel(self._function, parameters, batched=self._given, point_bytes=point_bytes, mode=self._mode)

    def twin(self) -> PytensorModel | None:
        """The same function of float64 parameters, float32 data and all.

        None if they are float64 already, or if the function cannot compute in float64, as a scan whose state is
        declared to be float32.
        """
        if all(p.dtype == np.float64 for p in self._parameters.values()):
            return None
        wide = {name: p.astype(np.float64) for name, p in self._parameters.items()}
        twin = self.at(wide)
        try:
            loss = twin.loss(wide)
        except Exception:  # noqa: BLE001  # whatever the function raises, float64 is not for it
            return None
        return twin if loss.dtype == np.float64 else None

    def cuts(self) -> Sequence[Cut]:
        """The cuts of the graph, a ``truncate_gradient`` among them; those inside the step of a scan are not listed."""
        return cuts.found(self._loss, list(self._symbols.values()))

    def without(self, cut: Collection[Cut]) -> PytensorModel:
        """The same loss, whose gradient flows through these cuts."""
        return self._changed(lambda p: cuts.removed(self._function(p), cut))

    def holding(self, cut: Collection[Cut]) -> PytensorModel | None:
        """The loss whose cut values stay those of the base point; None: a scan among the cuts stops by a condition."""
        variables = cuts.values_to_hold(self._loss, cut)
        if variables is None:
            return None
        symbols = list(self._symbols.values())
        values = compiled(symbols, variables, LIGHT)(*self._arrays(self._parameters))
        held = cuts.held(self._loss, dict(zip(variables, values, strict=True)))
        return self._changed(lambda p: rebuilt(held, {symbol: p[name] for name, symbol in self._symbols.items()}))

    def preserved(self) -> AbstractContextManager[None]:
        """Leave the shared variables of the graph as they were, among them its random generators."""
        return preserved(shared_inputs(self._loss))

    def environment(self) -> Mapping[str, str]:
        """PyTensor's version."""
        return environment()

    def _changed(self, function: Callable[[Tensors], Any]) -> PytensorModel:
        return PytensorModel(function, self._parameters, point_bytes=self._point_bytes, mode=self._mode)

    def _arrays(self, parameters: NamedArrays) -> list[Array]:
        return [parameters[name] for name in self._parameters]

    @cached_property
    def _symbols(self) -> Tensors:
        return _symbols(self._parameters)

    @cached_property
    def _loss(self) -> Any:
        return _one_number(self._function(dict(self._symbols)), list(self._symbols.values()))

    @cached_property
    def _loss_at(self) -> Any:
        return compiled(list(self._symbols.values()), self._loss, LIGHT)

    @cached_property
    def _gradients(self) -> Tensors:
        symbols = list(self._symbols.values())
        try:
            found = pytensor.grad(self._loss, symbols, disconnected_inputs="ignore", return_disconnected="none")
        except NullTypeGradError as error:
            msg = f"PyTensor has no gradient of this loss: {error}"
            raise ModelContractError(msg, where="value_and_grad()", hint="give the Op a pullback") from error
        # PyTensor widens what meets a float64 constant, its gradient, too
        return {
            name: None if g is None else g.astype(symbol.type.dtype)
            for (name, symbol), g in zip(self._symbols.items(), found, strict=True)
        }

    @cached_property
    def _gradient_at(self) -> Any:
        present = [g for g in self._gradients.values() if g is not None]
        # each way of compiling draws other random numbers, and the gradient must be that of the losses
        mode = LIGHT if any(map(is_generator, shared_inputs(self._loss))) else self._mode
        return compiled(list(self._symbols.values()), [self._loss, *present], mode)

    @cached_property
    def _batched(self) -> Evaluation | None:
        if self._given is not None:
            return Evaluation(self._given, self._parameters, copies=True)
        if any(getattr(v, "default_update", None) is not None for v in shared_inputs(self._loss)):
            return None  # points side by side would draw other random numbers
        batched = Evaluation(self._side_by_side, self._parameters, copies=True)
        try:
            batched({name: p[None] for name, p in self._parameters.items()})
        except Exception:  # noqa: BLE001  # no one type says "no rule for this Op"; the loop raises what is none
            return None
        return batched

    def _side_by_side(self, stacked: Tensors) -> Any:
        return vectorize_graph(
            rebuilt(self._loss, {}, lighter), {symbol: stacked[name] for name, symbol in self._symbols.items()}
        )


#: What a point of a function takes, in sizes of its parameters; a guess that keeps batches of large tensors small.
_COPIES = 8


def value_of(parameter: Any) -> Array:
    """The value of a shared variable, or of an array."""
    return np.asarray(parameter.get_value() if hasattr(parameter, "get_value") else parameter)


def _symbols(like: NamedArrays, *, copies: bool = False) -> Tensors:
    lead = (None,) if copies else ()
    return {name: pt.tensor(name, dtype=str(p.dtype), shape=(*lead, *p.shape)) for name, p in like.items()}


def compiled(inputs: list[Any], outputs: Any, mode: Any) -> Any:
    """A function of symbolic inputs, some of which it may not use."""
    return pytensor.function(inputs, outputs, mode=mode, on_unused_input="ignore")


def _one_number(loss: Any, known: list[Any]) -> Any:
    """The loss as a symbolic number.

    Raises:
        ModelContractError: it is not one real floating-point number, or needs an input that has no value.
    """
    variable = pt.as_tensor_variable(loss)
    if variable.type.ndim:
        msg = f"the loss has {variable.type.ndim} axes, but it must be one number"
        raise ModelContractError(msg, where="loss()", hint="reduce it, for example loss.mean() or loss.sum()")
    if not variable.type.dtype.startswith("float"):
        msg = f"the loss has dtype {variable.type.dtype}, but it must be a real floating-point number"
        raise ModelContractError(msg, where="loss()", hint="return a float, for example loss * 1.0")
    missing = [str(v) for v in free_inputs(variable) if v not in known]
    if missing:
        msg = f"the loss needs inputs that have no value: {', '.join(missing)}"
        raise ModelContractError(msg, where="loss()", hint="hold data in shared variables: x = pytensor.shared(array)")
    return variable
