"""A TensorFlow loss run eagerly, with what cuts its gradient, and what makes it, counted or exchanged.

The function runs eagerly, a `tf.function` in it as plain Python, so that a cut is a call with a line. For as long as it
runs, and for its thread only, the functions that cut are redirected. Those are private to TensorFlow: where one is
missing nothing is redirected and an exception raised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.tensorflow.sites import cut_here, rule_of, wrapped
from gradaudit.backends.tensorflow.state import preserved, private, redirected
from gradaudit.errors import ModelContractError
from gradaudit.protocols import Model
from gradaudit.sites import CustomRule, Cut

__all__ = ["EagerFunction", "EagerModel", "Evaluation", "Rewritten", "RuleCall", "Twin", "evaluate", "is_recorded"]

EagerFunction: TypeAlias = Callable[[dict[str, Any]], Any]
Twin: TypeAlias = Callable[[], Model | None]


@final
class EagerModel:
    """A function with some of its cuts removed, or held, or some of its rules replaced.

    Args:
        function: from a dict of named tensors to one number.
        parameters: the base point.
        twin: makes the same of the function's float64 twin.
        removed: the gradient flows through these.
        held: what these produce, by execution.
        replaced: the derivatives of their primals are taken instead.
    """

    def __init__(
        self,
        function: EagerFunction,
        parameters: NamedArrays,
        twin: Twin,
        *,
        removed: frozenset[Cut] = frozenset(),
        held: Mapping[Cut, Sequence[Any]] | None = None,
        replaced: frozenset[CustomRule] = frozenset(),
    ) -> None:
        self._parameters = parameters
        self._twin = twin
        self._evaluate = functools.partial(evaluate, function, removed=removed, held=held, replaced=replaced)

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss as a NumPy scalar.

        Raises:
            ModelContractError: it is not one real floating-point number, or a held cut ran more often than at the base
                point.
        """
        return as_scalar(self._evaluate(parameters).loss, "loss()")

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its gradient; None where the loss does not depend on a parameter.

        Raises:
            ModelContractError: as in `loss`.
        """
        loss, tape, tensors, _ = self._evaluate(parameters)
        scalar = as_scalar(loss, "value_and_grad()")
        gradients = tape.gradient(tf.convert_to_tensor(loss), tensors)
        dense = {n: None if g is None else np.asarray(tf.convert_to_tensor(g)) for n, g in gradients.items()}
        return scalar, dense

    def twin(self) -> Model | None:
        """The same of the function in float64; None if this is float64 already."""
        return self._twin()

    def preserved(self) -> AbstractContextManager[None]:
        """Leave TensorFlow's global random generator as it was."""
        return preserved()


class RuleCall(NamedTuple):
    """One execution of a `tf.custom_gradient` on values that depend on the parameters.

    Attributes:
        rule: what is known before it is compared.
        decorator: of TensorFlow, (function, args, kwargs) -> result, with the rule.
        function: what is decorated, args -> (result, rule).
        args: by position.
        kwargs: by name.
        result: of this execution.
        upstream: the gradients that the rule is given, once the backward pass has come there.
    """

    rule: CustomRule
    decorator: Callable[..., Any]
    function: Callable[..., Any]
    args: Any
    kwargs: Any
    result: Any
    upstream: list[Sequence[Any]]


_Watcher: TypeAlias = "Callable[[RuleCall, Rewritten], None]"


class Evaluation(NamedTuple):
    """A loss, the tape that recorded it, the parameters, and what was counted and kept on the way."""

    loss: Any
    tape: Any
    tensors: dict[str, Any]
    redirection: Rewritten


def evaluate(
    function: EagerFunction,
    parameters: NamedArrays,
    *,
    removed: frozenset[Cut] = frozenset(),
    held: Mapping[Cut, Sequence[Any]] | None = None,
    recording: frozenset[Cut] = frozenset(),
    replaced: frozenset[CustomRule] = frozenset(),
    watcher: _Watcher | None = None,
) -> Evaluation:
    """Run a function eagerly; the options are those of `Rewritten`.

    Raises:
        Exception: the function's own, where it is for graphs only.
        ImportError, AttributeError, KeyError: not with this TensorFlow.
    """
    tensors = {name: tf.constant(array) for name, array in parameters.items()}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(tensors.values()))
        redirection = Rewritten(tape, removed, held or {}, recording, replaced, watcher)
        with redirected(redirection):
            # map_fn and bound methods would convert what they call, to code without the user's lines
            loss = tf.autograph.experimental.do_not_convert(function)(tensors)
    return Evaluation(loss, tape, tensors, redirection)


@final
class Rewritten:
    """What the redirected functions do in one evaluation.

    What depends on the parameters is what the tape records. What a cut produces is watched by the tape: no gradient
    passes, but what depends on it is still seen to depend on the parameters. So a cut counts, or does not, whatever
    the cuts before it were told to do, and executions have the same numbers when recorded and when replayed.

    Args:
        tape: watches the parameters.
        removed: cuts that pass the gradient on.
        held: what cuts return, by execution, in place of what they produce.
        recording: cuts whose products are kept.
        replaced: rules in place of which their primals are differentiated.
        watcher: is told of each execution of a rule.
    """

    def __init__(
        self,
        tape: Any,
        removed: frozenset[Cut],
        held: Mapping[Cut, Sequence[Any]],
        recording: frozenset[Cut],
        replaced: frozenset[CustomRule],
        watcher: _Watcher | None,
    ) -> None:
        self._tape = tape
        self._removed = removed
        self._held = held
        self._replaced = replaced
        self._watcher = watcher
        self._in_primal = False
        self.recorded: dict[Cut, list[Any]] = {cut: [] for cut in recording}
        self.counts: dict[Cut, int] = {}
        self.suspended = False
        #: Values have left TensorFlow in a primal, so that the tape does not have all of its derivative.
        self.left = False

    @contextmanager
    def originals(self) -> Iterator[None]:
        """Nothing is redirected."""
        before, self.suspended = self.suspended, True
        try:
            yield
        finally:
            self.suspended = before

    def call(self, original: Callable[..., Any], function: Any, *args: Any, **kwargs: Any) -> Any:
        """Of a `tf.function`."""
        plain = function.python_function
        # TensorFlow's own insist on a graph: those of tf.vectorized_map and of saved models
        own = (getattr(plain, "__module__", None) or "").startswith("tensorflow.")
        if not own and tf.executing_eagerly():
            return plain(*args, **kwargs)
        tensors = tf.nest.flatten((args, kwargs))
        cut = (
            self._cut("stop_gradient in a graph", *tensors, removable=False) if _stops(function, args, kwargs) else None
        )
        if cut is not None:
            self._count(cut)
        return original(function, *args, **kwargs)

    def stop_gradient(self, original: Callable[..., Any], input: Any, name: str | None = None) -> Any:  # noqa: A002
        """Of the operation; `state.redirected` lets it happen on a running tape."""
        tensor = tf.convert_to_tensor(input) if tf.executing_eagerly() else input
        cut = self._cut("stop_gradient", tensor)
        if cut in self._removed:
            self._count(cut)
        if cut in self._removed or (self._in_primal and tf.executing_eagerly()):
            return tf.identity(tensor)
        with private("eager.record").stop_recording():
            stopped = original(tensor, name=name)
        return stopped if cut is None else self._product(cut, stopped)

    def numpy_function(self, original: Callable[..., Any], func: Any, inp: Any, *args: Any, **kwargs: Any) -> Any:
        """Of `tf.numpy_function`, whose result has no gradient."""
        cut = self._cut("numpy_function", *inp, removable=False)
        with self.originals():
            result = original(func, inp, *args, **kwargs)
        return result if cut is None else self._product(cut, result)

    def to_numpy(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Of what gives a tensor's value to NumPy or Python."""
        cut = self._cut(_WORDS[original.__name__], *args[:1], removable=False)
        with self.originals():
            value = original(*args, **kwargs)
        return value if cut is None else self._product(cut, value)

    def custom_gradient(self, original: Callable[..., Any], function: Any, args: Any, kwargs: Any) -> Any:
        """Of a function with its own rule for the gradient: cuts in it do nothing, nor do rules."""
        if self._in_primal:
            return self.primal(function, args, kwargs)
        rules: list[Any] = []
        upstream: list[Sequence[Any]] = []

        @functools.wraps(function)
        def suspended(*args: Any, **kwargs: Any) -> Any:
            with self.originals():
                result, rule = function(*args, **kwargs)
            rules.append(rule)
            return result, rule if self._watcher is None else _overheard(rule, upstream)

        result = original(suspended, args, kwargs)
        if not any(map(is_recorded, tf.nest.flatten((args, kwargs)))):
            return result
        rule = rule_of(function, rules[-1] if rules else None)
        if rule in self._replaced:
            # as in the original, the result is no longer the argument itself where that is returned
            return tf.nest.map_structure(tf.identity, self.primal(function, args, kwargs))
        if self._watcher is not None:
            self._watcher(RuleCall(rule, original, function, args, kwargs, result, upstream), self)
        return result

    def primal(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What the rule is the derivative of; cuts and rules in it do nothing: it has the derivative of its values."""
        around = wrapped(function)
        before, self._in_primal = self._in_primal, True
        try:
            return function(*args, **kwargs)[0] if around is None else around[1](*args, **kwargs)
        finally:
            self._in_primal = before

    def _cut(self, kind: str, *values: Any, removable: bool = True) -> Cut | None:
        """A cut at the line that calls; None where nothing is cut."""
        if not any(map(is_recorded, values)):
            return None
        if self._in_primal:
            self.left = self.left or not removable
            return None
        return cut_here(kind, removable=removable)

    def _count(self, cut: Cut) -> int:
        n = self.counts.get(cut, 0)
        self.counts[cut] = n + 1
        return n

    def _product(self, cut: Cut, product: Any) -> Any:
        n = self._count(cut)
        if cut in self._held:
            if n >= len(self._held[cut]):
                msg = f"{cut} ran more often than at the base point"
                raise ModelContractError(msg, where="holding()")
            # the user may write into an array
            product = copy(self._held[cut][n])
        if cut in self.recorded:
            self.recorded[cut].append(copy(product))
        for tensor in tf.nest.flatten(product):
            if isinstance(tensor, tf.Tensor) and tensor.dtype.is_floating:
                self._tape.watch(tensor)
        return product


#: The user's own word for a function that leaves TensorFlow.
_WORDS = {"numpy": "numpy", "__array__": "asarray", "array": "array", "asarray": "asarray", "__float__": "float"}


def is_recorded(value: Any) -> bool:
    """Whether the tape records what is computed from it; while a graph is built, TensorFlow reads what it captures."""
    eager = tf.executing_eagerly() and isinstance(value, private("framework.ops").EagerTensor)
    return eager and bool(private("eager.record").should_record_backprop([value]))


def _overheard(rule: Any, upstream: list[Sequence[Any]]) -> Callable[..., Any]:
    def overheard(*gradients: Any, **kwargs: Any) -> Any:
        upstream.append(gradients)
        return rule(*gradients, **kwargs)

    return overheard


def _stops(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether the graph of a function that only runs as one, for example of a saved model, stops a gradient."""
    if not tf.executing_eagerly():
        return False
    try:
        graph = function.get_concrete_function(*args, **kwargs).graph.as_graph_def()
    except Exception:  # noqa: BLE001  # TensorFlow's own, which takes what no other may give
        return False
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return any(node.op == "StopGradient" for node in nodes)
