"""NumPy: the built-in reference backend, with hand-written derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from gradaudit.backends.network import NetworkBackend
from gradaudit.backends.numpy.adapt import adapted
from gradaudit.backends.numpy.model import NumpyModel, environment
from gradaudit.backends.numpy.recurrent import NumpyNetwork
from gradaudit.backends.numpy.step import step_model
from gradaudit.protocols import Model, Operator
from gradaudit.recurrent import Problem

__all__ = ["NumpyBackend", "NumpyModel", "NumpyNetwork", "backend"]


@final
class NumpyBackend(NetworkBackend):
    """The `gradaudit.protocols.Backend` of NumPy."""

    name = "numpy"

    def environment(self) -> Mapping[str, str]:
        """NumPy's version."""
        return environment()

    def function_model(self, function: Callable[..., Any], parameters: Mapping[str, Any], **options: Any) -> NumpyModel:
        """A model over a loss; pass ``gradient=`` as well, see `NumpyModel`."""
        return NumpyModel(function, parameters, **options)

    def adapt(
        self,
        target: Any,
        at: Any,
        *,
        loss: Callable[..., Any] | None,
        gradient: Callable[..., Any] | bool | None,
    ) -> NumpyModel | None:
        """A loss with a gradient written by hand, see `gradaudit.backends.numpy.adapt`."""
        return adapted(target, at, gradient=gradient) if loss is None else None

    def operator(self, function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> Operator | None:
        """None: what differentiates arrays of NumPy is written by hand, and is a gradient, see `adapt`."""
        del function, inputs, seed
        return None

    def step(
        self, target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
    ) -> Model | None:
        """See `gradaudit.backends.numpy.step`."""
        return step_model(target, step, loss=loss, sizes=sizes)

    def network(self, problem: Problem) -> NumpyNetwork:
        """The network of a problem."""
        return NumpyNetwork(problem)


backend = NumpyBackend()
