"""JAX: derivatives by tracing, many points by vmap, everything compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from gradaudit.backends.jax.adapt import adapted
from gradaudit.backends.jax.model import JaxModel, environment
from gradaudit.backends.jax.operator import JaxOperator, operator
from gradaudit.backends.jax.recurrent import JaxNetwork
from gradaudit.backends.jax.step import step_model
from gradaudit.backends.network import NetworkBackend
from gradaudit.protocols import Model
from gradaudit.recurrent import Problem

__all__ = ["JaxBackend", "JaxModel", "JaxNetwork", "backend"]


@final
class JaxBackend(NetworkBackend):
    """The `gradaudit.protocols.Backend` of JAX."""

    name = "jax"

    def environment(self) -> Mapping[str, str]:
        """The versions of JAX and jaxlib, and the platform."""
        return environment()

    def function_model(self, function: Callable[..., Any], parameters: Mapping[str, Any], **options: Any) -> JaxModel:
        """A model over a pure function of a dict of arrays; for the options see `JaxModel`."""
        return JaxModel(function, parameters, **options)

    def adapt(
        self,
        target: Any,
        at: Any,
        *,
        loss: Callable[..., Any] | None,
        gradient: Callable[..., Any] | bool | None,
    ) -> Model | None:
        """See `gradaudit.backends.jax.adapt`."""
        return adapted(target, at, loss=loss) if gradient is None else None

    def operator(self, function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> JaxOperator | None:
        """See `gradaudit.backends.jax.operator`."""
        return operator(function, inputs, seed=seed)

    def step(
        self, target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
    ) -> Model | None:
        """See `gradaudit.backends.jax.step`."""
        return step_model(target, step, loss=loss, sizes=sizes)

    def network(self, problem: Problem) -> JaxNetwork:
        """The network of a problem."""
        return JaxNetwork(problem)


backend = JaxBackend()
