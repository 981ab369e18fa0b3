"""PyTensor, the heir of Theano: symbolic graphs, gradients by `pytensor.grad`, recurrent layers by its own `scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from gradaudit.backends.network import NetworkBackend
from gradaudit.backends.pytensor.adapt import adapted
from gradaudit.backends.pytensor.model import PytensorModel, environment
from gradaudit.backends.pytensor.recurrent import PytensorNetwork
from gradaudit.protocols import Model, Operator
from gradaudit.recurrent import Problem

__all__ = ["PytensorBackend", "PytensorModel", "PytensorNetwork", "backend"]


@final
class PytensorBackend(NetworkBackend):
    """The `gradaudit.protocols.Backend` of PyTensor."""

    name = "pytensor"

    def environment(self) -> Mapping[str, str]:
        """PyTensor's version."""
        return environment()

    def function_model(
        self, function: Callable[..., Any], parameters: Mapping[str, Any], **options: Any
    ) -> PytensorModel:
        """A model over a function of symbolic tensors; see `PytensorModel`."""
        return PytensorModel(function, parameters, **options)

    def adapt(
        self,
        target: Any,
        at: Any,
        *,
        loss: Callable[..., Any] | None,
        gradient: Callable[..., Any] | bool | None,
    ) -> PytensorModel | None:
        """A symbolic loss and the shared variables that it is differentiated by, see `adapt`."""
        return adapted(target, at) if loss is None and gradient is None else None

    def operator(self, function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> Operator | None:
        """None: an operator is given its inputs as values, and a symbolic variable has none."""
        del function, inputs, seed
        return None

    def step(
        self, target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
    ) -> Model | None:
        """None: a training step of PyTensor is a compiled function whose updates hold no gradient to read."""
        del target, step, loss, sizes
        return None

    def network(self, problem: Problem) -> PytensorNetwork:
        """The network of a problem."""
        return PytensorNetwork(problem)


backend = PytensorBackend()
