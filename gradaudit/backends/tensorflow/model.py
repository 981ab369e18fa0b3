"""A TensorFlow loss over named tensors, as a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import Any, TypeAlias, final

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar, frozen_copy
from gradaudit.backends.tensorflow.broadcasts import over_pairs
from gradaudit.backends.tensorflow.cuts import CutExperiments
from gradaudit.backends.tensorflow.eager import EagerModel
from gradaudit.backends.tensorflow.origin import origin
from gradaudit.backends.tensorflow.rules import RuleExperiments
from gradaudit.backends.tensorflow.state import preserved
from gradaudit.direction import Point, displace, stack
from gradaudit.errors import ModelContractError
from gradaudit.sites import Broadcast, CustomRule, Cut, Origin

__all__ = ["TensorflowModel", "Tensors", "environment", "own_trace"]

Tensors: TypeAlias = dict[str, tf.Tensor]


def environment() -> Mapping[str, str]:
    """TensorFlow's version."""
    return {"backend": "tensorflow", "tensorflow": tf.__version__}


def own_trace(function: Callable[..., Any]) -> Any:
    """The same function as a `tf.function` that nobody has differentiated yet.

    TensorFlow (2.21) cannot push a tangent through the loops of a `tf.function` that was differentiated in reverse
    before: "TypeError: `dtype` variant is not compatible". Called from a trace of its own, it can.
    """
    # partial: TensorFlow counts traces by code object, and would warn that this one is traced for many functions
    return tf.function(partial(_call, function), autograph=False, reduce_retracing=True)


@final
class TensorflowModel:
    """A pure function from a dict of named tensors to one number.

    Args:
        function: a plain function or a `tf.function`; it is given constants and must not need variables.
        parameters: the base point: floating-point tensors, variables or arrays by name, which are copied.
        batched: parameters with a leading axis K -> (K,) losses; by default `tf.vectorized_map`, and a loop over the
            points where that has no rule.
        forward: the function that forward mode differentiates; by default ``function``.
        point_bytes: working memory of one point in a batch; by default read off the function's graph.
    """

    def __init__(
        self,
        function: Callable[[Tensors], Any],
        parameters: Mapping[str, Any],
        *,
        batched: Callable[[Tensors], tf.Tensor] | None = None,
        forward: Callable[[Tensors], Any] | None = None,
        point_bytes: int | None = None,
    ) -> None:
        self._function = function
        self._batched = batched
        self._forward = forward or function
        self._parameters = frozen_copy({name: np.asarray(p) for name, p in parameters.items()})
        self._point_bytes = point_bytes
        self._vectorized = own_trace(partial(_vectorized_losses, function))
        self._cuts = CutExperiments(function, self._parameters)
        self._rules = RuleExperiments(function, self._parameters)

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss as a NumPy scalar.

        Raises:
            ModelContractError: it is not one real floating-point number.
        """
        return as_scalar(self._function(_tensors(parameters)), "loss()")

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its gradient by `tf.GradientTape`; None where the loss does not depend on a parameter.

        Raises:
            ModelContractError: the loss is not one real floating-point number.
        """
        tensors = _tensors(parameters)
        sources = list(tensors.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            loss = self._function(tensors)
        # before the gradient: the tape would silently sum a loss of several numbers
        scalar = as_scalar(loss, "value_and_grad()")
        gradients = tape.gradient(tf.convert_to_tensor(loss), sources)
        return scalar, {name: _dense(g) for name, g in zip(parameters, gradients, strict=True)}

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """The directional derivative by `tf.autodiff.ForwardAccumulator`.

        Raises:
            ModelContractError: the loss is not one real floating-point number.
        """
        try:
            loss, derivative = _pushed_forward(self._forward, parameters, tangents)
        except TypeError:
            # the function, or one that it calls, is a tf.function that was differentiated before, see `own_trace`
            self._forward = own_trace(self._function)
            loss, derivative = _pushed_forward(self._forward, parameters, tangents)
        as_scalar(loss, "jvp()")
        return 0.0 if derivative is None else float(derivative)

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        if self._point_bytes is None:
            own = sum(p.nbytes for p in self._parameters.values())
            self._point_bytes = own + _graph_bytes(self._graph)
        return self._point_bytes

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,): ``batched``, or `tf.vectorized_map`, or one by one where that fails."""
        if self._batched is not None:
            return _vector(self._batched(_tensors(stack(self._parameters, points))), len(points))
        if self._vectorized is None or len(points) < 2:
            return self._one_by_one(points)
        try:
            with _unlogged():
                return _vector(self._vectorized(_tensors(stack(self._parameters, points))), len(points))
        except Exception:  # noqa: BLE001  # no one type says "no rule for this operation"; the loop raises what is none
            losses = self._one_by_one(points)
            self._vectorized = None
            return losses

    def _one_by_one(self, points: Sequence[Point]) -> Array:
        return np.array([self.loss(displace(self._parameters, point)) for point in points])

    def at(self, parameters: NamedArrays) -> TensorflowModel:
        """The same function at another base point."""
        before, now = (sum(p.nbytes for p in arrays.values()) for arrays in (self._parameters, parameters))
        point_bytes = None if self._point_bytes is None else self._point_bytes * now // before
        return TensorflowModel(self._function, parameters, batched=self._batched, point_bytes=point_bytes)

    def twin(self) -> TensorflowModel | None:
        """The same function of float64 parameters.

        None if they are float64 already, or if the function cannot compute in float64: TensorFlow promotes no dtypes,
        so it must convert its data to that of the parameters.
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
        """The live cuts at the base point; empty if the function runs in a graph only."""
        return self._cuts.cuts()

    def without(self, cuts: Collection[Cut]) -> EagerModel | None:
        """The same loss, whose gradient flows through these cuts; None: values that left TensorFlow."""
        return self._cuts.without(cuts, lambda: None if (twin := self.twin()) is None else twin.without(cuts))

    def holding(self, cuts: Collection[Cut]) -> EagerModel | None:
        """The loss whose cut values stay what they are at the base point; None: it has no such cuts."""
        return self._cuts.holding(cuts, lambda: None if (twin := self.twin()) is None else twin.holding(cuts))

    def rules(self) -> Sequence[CustomRule]:
        """The `tf.custom_gradient`s at the base point, each compared; empty if the function runs in a graph only."""
        return self._rules.rules()

    def replacing(self, rules: Collection[CustomRule]) -> EagerModel | None:
        """The same loss, these rules replaced by the derivatives of their primals; None: it has no such rules."""
        return self._rules.replacing(rules, lambda: None if (twin := self.twin()) is None else twin.replacing(rules))

    def origin(self) -> Origin | None:
        """Where the gradient stops being finite at the base point; None if it does not, or runs in a graph only."""
        return origin(self._function, self._parameters)

    def broadcasts(self) -> Sequence[Broadcast]:
        """Where the loss is taken over pairs: see `gradaudit.backends.tensorflow.broadcasts`.

        A loss with a loop in its graph is not asked: it would run in Python, step by step.

        Raises:
            Exception: the function's own, where it runs in a graph only.
        """
        if self._graph is not None and any(node.op in ("While", "StatelessWhile") for node in _nodes(self._graph)):
            return ()
        return over_pairs(self._function, self._parameters)

    @cached_property
    def _graph(self) -> Any | None:
        return _graph(self._function, self._parameters)

    def preserved(self) -> AbstractContextManager[None]:
        """Leave TensorFlow's global random generator as it was."""
        return preserved()

    def environment(self) -> Mapping[str, str]:
        """TensorFlow's version."""
        return environment()


def _tensors(parameters: NamedArrays) -> Tensors:
    return {name: tf.constant(array) for name, array in parameters.items()}


def _dense(gradient: tf.Tensor | tf.IndexedSlices | None) -> Array | None:
    # tf.gather has a sparse gradient, which may name a row more than once; converting it adds these up
    return None if gradient is None else np.asarray(tf.convert_to_tensor(gradient))


def _pushed_forward(
    function: Callable[[Tensors], Any], parameters: NamedArrays, tangents: NamedArrays
) -> tuple[Any, tf.Tensor | None]:
    primals = _tensors(parameters)
    directions = [tf.constant(tangents[name], tensor.dtype) for name, tensor in primals.items()]
    with tf.autodiff.ForwardAccumulator(list(primals.values()), directions) as accumulator:
        loss = function(primals)
    return loss, accumulator.jvp(tf.convert_to_tensor(loss))


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _vectorized_losses(function: Callable[[Tensors], Any], stacked: Tensors) -> tf.Tensor:
    losses = tf.vectorized_map(function, stacked, fallback_to_while_loop=False)
    if any(node.op.startswith("Assign") for node in _nodes(tf.convert_to_tensor(losses).graph)):
        msg = "points side by side would share the variable that the loss assigns"
        raise ValueError(msg)
    return losses


@contextmanager
def _unlogged() -> Iterator[None]:
    """An operation that cannot be vectorised is not worth the page that TensorFlow logs about it."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        logger.setLevel(level)


def _graph_bytes(graph: Any | None) -> int:
    """The size of all results in a function's graph, more than are alive at once; 0 where it cannot be traced."""
    operations = [] if graph is None else graph.get_operations()  # its points go one by one then
    results = [t for op in operations if op.type not in ("Const", "Placeholder") for t in op.outputs]
    return sum((t.shape.num_elements() or 0) * t.dtype.size for t in results)


def _graph(function: Callable[[Tensors], Any], parameters: NamedArrays) -> Any | None:
    inputs = {name: tf.TensorSpec(p.shape, p.dtype) for name, p in parameters.items()}
    traced = function if isinstance(function, tf.types.experimental.PolymorphicFunction) else own_trace(function)
    try:
        return traced.get_concrete_function(inputs).graph
    except Exception:  # noqa: BLE001  # no one type says that a function needs values
        return None


def _nodes(graph: Any) -> list[Any]:
    """Of a graph, and of the functions that it calls."""
    definition = graph.as_graph_def()
    return [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]


def _vector(losses: Any, n_points: int) -> Array:
    """The losses as (K,).

    Raises:
        ModelContractError: they are not K real floating-point numbers.
    """
    array = np.asarray(losses)
    if array.shape != (n_points,):
        msg = f"{n_points} points gave losses of shape {array.shape}"
        raise ModelContractError(msg, where="along()", hint="return one loss for each point")
    as_scalar(array[0], "along()")
    return array
