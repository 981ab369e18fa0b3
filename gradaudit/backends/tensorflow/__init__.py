"""TensorFlow: graphs traced once and shared by all models, gradients by `tf.GradientTape`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from gradaudit.backends.network import NetworkBackend
from gradaudit.backends.tensorflow.adapt import adapted
from gradaudit.backends.tensorflow.model import TensorflowModel, environment
from gradaudit.backends.tensorflow.operator import TensorflowOperator, operator
from gradaudit.backends.tensorflow.recurrent import TensorflowNetwork
from gradaudit.backends.tensorflow.step import step_model
from gradaudit.protocols import Model
from gradaudit.recurrent import Problem

__all__ = ["TensorflowBackend", "TensorflowModel", "TensorflowNetwork", "backend"]


@final
class TensorflowBackend(NetworkBackend):
    """The `gradaudit.protocols.Backend` of TensorFlow."""

    name = "tensorflow"

    def environment(self) -> Mapping[str, str]:
        """TensorFlow's version."""
        return environment()

    def function_model(
        self, function: Callable[..., Any], parameters: Mapping[str, Any], **options: Any
    ) -> TensorflowModel:
        """A model over a loss, a plain function or a `tf.function`; see `TensorflowModel`."""
        return TensorflowModel(function, parameters, **options)

    def adapt(
        self,
        target: Any,
        at: Any,
        *,
        loss: Callable[..., Any] | None,
        gradient: Callable[..., Any] | bool | None,
    ) -> Model | None:
        """See `gradaudit.backends.tensorflow.adapt`."""
        return adapted(target, at, loss=loss) if gradient is None else None

    def operator(self, function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> TensorflowOperator | None:
        """See `gradaudit.backends.tensorflow.operator`."""
        return operator(function, inputs, seed=seed)

    def step(
        self, target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
    ) -> Model | None:
        """See `gradaudit.backends.tensorflow.step`."""
        return step_model(target, step, loss=loss, sizes=sizes)

    def network(self, problem: Problem) -> TensorflowNetwork:
        """The network of a problem."""
        return TensorflowNetwork(problem)


backend = TensorflowBackend()
