"""Where the gradient of a TensorFlow loss stops being finite.

The loss runs eagerly with a callback on each operation, which is private to TensorFlow; one backward pass gives the
gradient of each value on the way, and these are walked back from the loss.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from gradaudit.arrays import NamedArrays
from gradaudit.backends.tensorflow.eager import EagerFunction, Evaluation, Rewritten, RuleCall, evaluate, is_recorded
from gradaudit.backends.tensorflow.sites import Caller, caller
from gradaudit.backends.tensorflow.state import private
from gradaudit.sites import Origin

__all__ = ["callback", "origin", "word"]


def origin(function: EagerFunction, parameters: NamedArrays) -> Origin | None:
    """The first operation of the backward pass that makes something non-finite out of what was finite.

    None if the gradient is finite, or the function cannot run eagerly.
    """
    try:
        operations, evaluation = _run(function, parameters)
        gradients = _Gradients(evaluation, operations)
    except Exception:  # noqa: BLE001  # no one type says "in a graph only" or "not in this TensorFlow"
        return None
    if all(map(gradients.finite, evaluation.tensors.values())):
        return None
    for operation in reversed(operations):
        if _breaks(operation, gradients):
            at = operation.caller
            return Origin(
                operation=operation.name,
                path=at.path,
                line=at.line,
                function=at.function,
                forward=not all(_finite(output) for output in operation.outputs if gradients.of(output) is not None),
            )
    return None


class _Operation(NamedTuple):
    name: str
    caller: Caller
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    #: Gradients of the outputs -> gradients of the inputs.
    backward: Callable[[Sequence[Any]], Sequence[Any]]


# --- forward ---


def _run(function: EagerFunction, parameters: NamedArrays) -> tuple[list[_Operation], Evaluation]:
    operations: list[_Operation] = []

    def of_tensorflow(
        kind: str | bytes, inputs: Any, attrs: Any, outputs: Any, op_name: str | None = None, graph: Any = None
    ) -> None:
        del op_name
        kind = (
            kind.decode() if isinstance(kind, bytes) else kind
        )  # the one or the other, depending on how it was called
        # a graph that runs as a whole, whose name begins so, stops the tape meanwhile
        if graph is None and (kind.startswith("__") or any(map(is_recorded, inputs))):
            at = caller()
            backward = _backward(kind, attrs, tuple(inputs), tuple(outputs))
            operations.append(_Operation(at.called or word(kind), at, tuple(inputs), tuple(outputs), backward))

    def of_the_user(call: RuleCall, run: Rewritten) -> None:
        inputs, outputs = (_floating(tf.nest.flatten(part)) for part in ((call.args, call.kwargs), call.result))
        name = call.rule.name if call.rule.kind in {"custom_gradient", "operation"} else call.rule.kind
        operations.append(_Operation(name, caller(), inputs, outputs, _ruled(call, run, inputs)))

    with callback(of_tensorflow):
        evaluation = evaluate(function, parameters, watcher=of_the_user)
    return operations, evaluation


#: TensorFlow lets the last callback of one thread end those of all.
_lock = threading.RLock()


@contextmanager
def callback(function: Callable[..., None]) -> Iterator[None]:
    """Meanwhile a function is told of each operation, as `tf.debugging`'s own are."""
    callbacks = private("framework.op_callbacks")
    with _lock:
        callbacks.add_op_callback(function)
        try:
            yield
        finally:
            callbacks.remove_op_callback(function)


#: Operations whose names are not what one writes.
_WORDS = {"RealDiv": "div", "Select": "where", "SelectV2": "where", "BatchMatMul": "matmul", "MatMul": "matmul"}


def word(kind: str) -> str:
    """The name of an operator, as in ``x / y``."""
    plain = re.sub(r"V\d+$", "", kind)
    return _WORDS.get(plain, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plain).lower())


# --- backward ---


class _Gradients:
    """Of the loss with respect to each value that an operation took or made."""

    def __init__(self, evaluation: Evaluation, operations: Iterable[_Operation]) -> None:
        values = {tensor._id: tensor for tensor in evaluation.tensors.values()}  # noqa: SLF001  # the tape's own key
        for operation in operations:
            values.update((t._id, t) for t in _floating((*operation.inputs, *operation.outputs)))  # noqa: SLF001
        loss = tf.convert_to_tensor(evaluation.loss)
        found = evaluation.tape.gradient(loss, list(values.values()))
        self._of = dict(zip(values, found, strict=True))

    def of(self, tensor: Any) -> Any:
        """None where the loss does not depend on it, or not differentiably."""
        return self._of.get(tensor._id)  # noqa: SLF001

    def finite(self, tensor: Any) -> bool:
        """Also where there is none."""
        return _finite(self.of(tensor))


def _breaks(operation: _Operation, gradients: _Gradients) -> bool:
    """Whether finite gradients of the outputs became something else."""
    outputs = [gradients.of(output) for output in operation.outputs]
    if all(g is None for g in outputs) or not all(map(_finite, outputs)):
        return False
    if all(map(gradients.finite, operation.inputs)):
        return False
    # the gradient of an input is the sum over all operations that took it
    try:
        own = operation.backward(
            [tf.zeros_like(o) if g is None else g for o, g in zip(operation.outputs, outputs, strict=True)]
        )
    except Exception:  # noqa: BLE001  # not an operation of its own, as a function that is called as a whole
        return True
    return not all(map(_finite, own))


def _backward(
    kind: str, attrs: Any, inputs: Sequence[Any], outputs: Sequence[Any]
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The tape's own: what it calls for an operation."""

    def backward(gradients: Sequence[Any]) -> Sequence[Any]:
        differentiate = private("eager.backprop")._gradient_function  # noqa: SLF001
        found = differentiate(kind, attrs, len(inputs), inputs, outputs, gradients, (), "")
        return found if isinstance(found, list | tuple) else [found]

    return backward


def _ruled(call: RuleCall, run: Rewritten, inputs: Sequence[Any]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The user's own rule, which is made once more."""

    def backward(gradients: Sequence[Any]) -> Any:
        with run.originals(), tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            results = _floating(tf.nest.flatten(call.decorator(call.function, call.args, call.kwargs)))
        return tape.gradient(results, inputs, output_gradients=gradients)

    return backward


def _floating(values: Iterable[Any]) -> list[Any]:
    return [v for v in values if isinstance(v, tf.Tensor) and (v.dtype.is_floating or v.dtype.is_complex)]


def _finite(value: Any) -> bool:
    if value is None:
        return True
    # a sparse gradient may name a row more than once, its values are all there
    array = np.asarray(value.values if isinstance(value, tf.IndexedSlices) else value)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
