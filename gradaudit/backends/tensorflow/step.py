"""A training step of a Keras model or `tf.Module` that returns its gradient or gives it to an optimiser of Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Gradients, NamedArrays, Scalar
from gradaudit.backends.keras import keras_of
from gradaudit.backends.stepped import OverStep, by_rows, chosen, loss_among, unasked
from gradaudit.backends.tensorflow.adapt import adapted, inlined, variables_of
from gradaudit.backends.tensorflow.model import TensorflowModel
from gradaudit.backends.tensorflow.state import preserved
from gradaudit.protocols import StepVariant

__all__ = ["StepModel", "step_model"]


def step_model(
    target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
) -> StepModel | None:
    """A Keras model on TensorFlow, or a `tf.Module`, and its step; None: neither.

    The gradient is what the step gives an optimiser of Keras, as that clips it; else what it returns. Nothing is
    updated: the optimiser only takes note, and all variables are put back.

    Args:
        target: the model.
        step: of it, applies or returns the gradient: in the order of ``trainable_variables``, or a dict by their names.
        loss: of it, the objective; None: what the step returns.
        sizes: by which a factor is named.
    """
    keras = keras_of(target, "tensorflow")
    if keras is None and (not isinstance(target, tf.Module) or isinstance(target, tf.Variable)):
        return None
    objective = adapted(target, None, loss=loss or unasked)
    assert objective is not None  # of such a target there is one
    return StepModel(
        target, step, objective, sizes, optimizer=keras and keras.optimizers.Optimizer, returns=loss is None
    )


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What one run of the step did.

    Attributes:
        given: to optimisers, each time, by the variables' identities.
        rows: the leading size of the model's input, for each call of it that a tape then differentiated.
        called: that size, of a call that no tape has differentiated yet.
        returned: by the step.
    """

    given: list[dict[int, Any]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    called: int | None = None
    returned: Any = None


@final
class StepModel(OverStep):
    """The objective of a model, whose gradient is what a training step applies or returns.

    Args:
        target: what is trained.
        step: runs the step on it.
        objective: the loss that the step is meant for.
        sizes: the user's own sizes, by which a factor is named.
        optimizer: the class of Keras's optimisers; None: there is none.
        returns: what the step returns is the loss instead.
        weights: multiply what a tape gives for each micro-batch by its own number.
    """

    def __init__(
        self,
        target: Any,
        step: Callable[..., Any],
        objective: TensorflowModel,
        sizes: Mapping[str, int],
        *,
        optimizer: Any = None,
        returns: bool = False,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(objective, self._loss_of_step if returns else None)
        self._target, self._step, self._objective, self._sizes = target, step, objective, dict(sizes)
        self._optimizer, self._weights = optimizer, weights
        self._trained = variables_of(target)
        self._seen = _Seen()

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The objective, and the gradient that the optimiser would see.

        Raises:
            ModelContractError: the step applies and returns none.
        """
        value = self.loss(parameters)
        seen = self._seen = self._run(parameters)
        mine = {id(variable): name for name, variable in self._trained.items()}
        first = next((g for g in seen.given if set(g) & set(mine)), None)
        found = seen.returned if first is None else {mine[i]: g for i, g in first.items() if i in mine}
        return value, chosen(found, parameters, self._named)

    def sizes(self) -> Mapping[str, int]:
        """The user's sizes, and the number of micro-batches."""
        return {**self._sizes, "micro-batches": len(self._seen.rows)}

    def variants(self) -> Sequence[StepVariant]:
        """The objective, and the step with its micro-batches weighted by their rows."""
        _, _ = self.value_and_grad(self.parameters())
        rows = by_rows(self._seen.rows)
        weighted = [StepVariant(kind="weights", detail=d, model=self._weighted(weights)) for d, weights in rows]
        return [*super().variants(), *weighted]

    def _weighted(self, weights: Sequence[float]) -> StepModel:
        parts = self._target, self._step, self._objective, self._sizes
        return StepModel(*parts, optimizer=self._optimizer, returns=self._returned is not None, weights=weights)

    def _loss_of_step(self, parameters: NamedArrays) -> Any:
        return loss_among(self._run(parameters).returned, parameters, self._named)

    def _named(self, found: Any) -> Mapping[str, Any] | None:
        """What is a gradient, as arrays by name."""
        if isinstance(found, Mapping):
            return {name: _dense(found.get(name)) for name in self._trained}
        if not isinstance(found, (list, tuple)) or len(found) != len(self._trained):
            return None
        arrays = [_dense(g) for g in found]
        if any(a is None and g is not None for a, g in zip(arrays, found, strict=True)):
            return None
        return dict(zip(self._trained, arrays, strict=True))

    def _run(self, parameters: NamedArrays) -> _Seen:
        seen, model = _Seen(), self._target
        # inlined: what a step that is a `tf.function` gives its optimiser is then a number
        with preserved(), _restored([*model.variables, *getattr(model, "metrics_variables", [])]), inlined():
            for name, variable in self._trained.items():
                variable.assign(parameters[name])
            with self._watched(seen):
                seen.returned = self._step(model)
        return seen

    @contextmanager
    def _watched(self, seen: _Seen) -> Iterator[None]:
        mine = {id(variable) for variable in self._trained.values()}
        kind, gradient = type(self._target), tf.GradientTape.gradient
        called = kind.__call__ if callable(self._target) else None

        def call(self_: Any, *args: Any, **kwargs: Any) -> Any:
            if self_ is self._target:
                seen.called = next((x.shape[0] for x in tf.nest.flatten(args) if len(getattr(x, "shape", ()))), 0)
            return called(self_, *args, **kwargs)  # type: ignore[misc]  # it is there if it is patched

        def differentiated(tape: Any, target: Any, sources: Any, *args: Any, **kwargs: Any) -> Any:
            found = gradient(tape, target, sources, *args, **kwargs)
            if not mine & {id(source) for source in tf.nest.flatten(sources)}:
                return found
            if seen.called is not None:
                seen.rows.append(seen.called)
                seen.called = None
            if self._weights is None or not seen.rows:
                return found
            weight = self._weights[(len(seen.rows) - 1) % len(self._weights)]
            return tf.nest.map_structure(lambda g: None if g is None else _times(weight, g), found)

        def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> Any:
            """Take note, clipped as the optimiser clips, and update nothing."""
            variables = optimizer._trainable_variables if trainable_variables is None else trainable_variables  # noqa: SLF001
            clipped = optimizer._clip_gradients(list(grads))  # noqa: SLF001
            seen.given.append({id(v): g for v, g in zip(variables, clipped, strict=True)})
            return optimizer.iterations

        with ExitStack() as stack:
            stack.enter_context(_instead(tf.GradientTape, "gradient", differentiated))
            if called is not None:
                stack.enter_context(_instead(kind, "__call__", call))
            if self._optimizer is not None:
                stack.enter_context(_instead(self._optimizer, "apply", apply))
            yield


def _times(weight: float, gradient: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(weight * gradient.values, gradient.indices, gradient.dense_shape)
    return weight * gradient


def _dense(gradient: Any) -> Any:
    if not isinstance(gradient, (tf.Tensor, tf.IndexedSlices, np.ndarray)):
        return None
    return np.asarray(tf.convert_to_tensor(gradient))


@contextmanager
def _restored(variables: Any) -> Iterator[None]:
    """All these variables have their values of before afterwards."""
    before = [(variable, variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


@contextmanager
def _instead(cls: Any, name: str, value: Any) -> Iterator[None]:
    """Meanwhile a class has this attribute."""
    before = vars(cls).get(name)
    setattr(cls, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(cls, name)
        else:
            setattr(cls, name, before)
