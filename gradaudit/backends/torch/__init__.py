"""PyTorch: losses as functions of named tensors, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from gradaudit.backends.network import NetworkBackend
from gradaudit.backends.torch.adapt import adapted
from gradaudit.backends.torch.model import TorchModel, environment
from gradaudit.backends.torch.operator import TorchOperator, operator
from gradaudit.backends.torch.recurrent import TorchNetwork
from gradaudit.backends.torch.step import step_model
from gradaudit.protocols import Model
from gradaudit.recurrent import Problem

__all__ = ["TorchBackend", "TorchModel", "TorchNetwork", "backend"]


@final
class TorchBackend(NetworkBackend):
    """The `gradaudit.protocols.Backend` of PyTorch."""

    name = "torch"

    def environment(self) -> Mapping[str, str]:
        """PyTorch's version."""
        return environment()

    def function_model(self, function: Callable[..., Any], parameters: Mapping[str, Any], **options: Any) -> TorchModel:
        """A model over a pure function ``dict[str, Tensor] -> scalar Tensor``, see `TorchModel`."""
        return TorchModel(function, parameters, **options)

    def adapt(
        self,
        target: Any,
        at: Any,
        *,
        loss: Callable[..., Any] | None,
        gradient: Callable[..., Any] | bool | None,
    ) -> Model | None:
        """See `gradaudit.backends.torch.adapt`."""
        return adapted(target, at, loss=loss) if gradient is None else None

    def operator(self, function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> TorchOperator | None:
        """See `gradaudit.backends.torch.operator`."""
        return operator(function, inputs, seed=seed)

    def step(
        self, target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
    ) -> Model | None:
        """See `gradaudit.backends.torch.step`."""
        return step_model(target, step, loss=loss, sizes=sizes)

    def network(self, problem: Problem) -> TorchNetwork:
        """The network of a problem."""
        return TorchNetwork(problem)


backend = TorchBackend()
