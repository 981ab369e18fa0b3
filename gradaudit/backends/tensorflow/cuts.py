"""Where a TensorFlow loss cuts its gradient; the same loss with cuts removed, or with what they produced held.

The function runs eagerly, a `tf.function` in it as plain Python, so that a cut is a call with a line. For as long as it
runs, and for its thread only, the functions that cut are redirected. Those are private to TensorFlow: where one is
missing nothing is redirected and nothing listed.
"""

from __future__ import annotations

import functools
import itertools
import site
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.tensorflow.state import preserved, private, redirected
from gradaudit.errors import ModelContractError
from gradaudit.protocols import Model
from gradaudit.sites import Cut

__all__ = ["CutExperiments", "CutModel"]

_Function: TypeAlias = Callable[[dict[str, Any]], Any]
_Twin: TypeAlias = Callable[[], Model | None]


@final
class CutExperiments:
    """The cuts of one function at one base point: `gradaudit.protocols.SupportsCuts`.

    Args:
        function: from a dict of named tensors to one number.
        parameters: the base point.
    """

    def __init__(self, function: _Function, parameters: NamedArrays) -> None:
        self._function = function
        self._parameters = parameters
        self._listed: tuple[Cut, ...] | None = None

    def cuts(self) -> tuple[Cut, ...]:
        """The live cuts, in the order of their first execution; empty if the function cannot run eagerly."""
        if self._listed is None:
            try:
                counts = _evaluate(self._function, self._parameters).redirection.counts
            except Exception:  # noqa: BLE001  # no one type says "in a graph only" or "not in this TensorFlow"
                counts = {}
            self._listed = tuple(replace(cut, executions=n) for cut, n in counts.items())
        return self._listed

    def without(self, cuts: Collection[Cut], twin: _Twin) -> CutModel | None:
        """The function with cuts removed; None where one is not listed or cannot be removed."""
        # as listed: a cut that somebody else made may not know that it cannot be removed
        chosen = [cut for cut in self.cuts() if cut in cuts]
        if len(chosen) < len(set(cuts)) or not all(cut.removable for cut in chosen):
            return None
        return CutModel(self._function, self._parameters, twin, removed=frozenset(chosen))

    def holding(self, cuts: Collection[Cut], twin: _Twin) -> CutModel | None:
        """The function with what the cuts produce held at the base point; None where one is not listed."""
        if not set(cuts) <= set(self.cuts()):
            return None
        try:
            recorded = _evaluate(self._function, self._parameters, recording=frozenset(cuts)).redirection.recorded
        except Exception:  # noqa: BLE001  # as in `cuts`
            return None
        return CutModel(self._function, self._parameters, twin, held=recorded)


@final
class CutModel:
    """A function with some of its cuts removed, or held.

    Args:
        function: from a dict of named tensors to one number.
        parameters: the base point.
        twin: makes the same of the function's float64 twin.
        removed: the gradient flows through these.
        held: what these produce, by execution.
    """

    def __init__(
        self,
        function: _Function,
        parameters: NamedArrays,
        twin: _Twin,
        *,
        removed: frozenset[Cut] = frozenset(),
        held: Mapping[Cut, Sequence[Any]] | None = None,
    ) -> None:
        self._parameters = parameters
        self._twin = twin
        self._evaluate = functools.partial(_evaluate, function, removed=removed, held=held or {})

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


class _Evaluation(NamedTuple):
    loss: Any
    tape: Any
    tensors: dict[str, Any]
    redirection: _Redirection


def _evaluate(
    function: _Function,
    parameters: NamedArrays,
    *,
    removed: frozenset[Cut] = frozenset(),
    held: Mapping[Cut, Sequence[Any]] | None = None,
    recording: frozenset[Cut] = frozenset(),
) -> _Evaluation:
    tensors = {name: tf.constant(array) for name, array in parameters.items()}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(tensors.values()))
        redirection = _Redirection(tape, removed, held or {}, recording)
        with redirected(redirection):
            # map_fn and bound methods would convert what they call, to code without the user's lines
            loss = tf.autograph.experimental.do_not_convert(function)(tensors)
    return _Evaluation(loss, tape, tensors, redirection)


@final
class _Redirection:
    """What the redirected functions do in one evaluation.

    What depends on the parameters is what the tape records. What a cut produces is watched by the tape: no gradient
    passes, but what depends on it is still seen to depend on the parameters. So a cut counts, or does not, whatever
    the cuts before it were told to do, and executions have the same numbers when recorded and when replayed.

    Args:
        tape: watches the parameters.
        removed: cuts that pass the gradient on.
        held: what cuts return, by execution, in place of what they produce.
        recording: cuts whose products are kept.
    """

    def __init__(
        self, tape: Any, removed: frozenset[Cut], held: Mapping[Cut, Sequence[Any]], recording: frozenset[Cut]
    ) -> None:
        self._tape = tape
        self._removed = removed
        self._held = held
        self.recorded: dict[Cut, list[Any]] = {cut: [] for cut in recording}
        self.counts: dict[Cut, int] = {}
        self.suspended = False

    @contextmanager
    def _suspended(self) -> Iterator[None]:
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
        return original(function, *args, **kwargs) if own or not tf.executing_eagerly() else plain(*args, **kwargs)

    def stop_gradient(self, original: Callable[..., Any], input: Any, name: str | None = None) -> Any:  # noqa: A002
        """Of the operation; `state.redirected` lets it happen on a running tape."""
        tensor = tf.convert_to_tensor(input) if tf.executing_eagerly() else input
        cut = _cut("stop_gradient") if _is_recorded(tensor) else None
        if cut in self._removed:
            self._count(cut)
            return tf.identity(tensor)
        with private("eager.record").stop_recording():
            stopped = original(tensor, name=name)
        return stopped if cut is None else self._product(cut, stopped)

    def numpy_function(self, original: Callable[..., Any], func: Any, inp: Any, *args: Any, **kwargs: Any) -> Any:
        """Of `tf.numpy_function`, whose result has no gradient."""
        cut = _cut("numpy_function", removable=False) if any(map(_is_recorded, inp)) else None
        with self._suspended():
            result = original(func, inp, *args, **kwargs)
        return result if cut is None else self._product(cut, result)

    def custom_gradient(self, original: Callable[..., Any], function: Any, *args: Any, **kwargs: Any) -> Any:
        """Of a function with its own rule for the gradient: cuts in it do nothing."""

        @functools.wraps(function)
        def suspended(*args: Any, **kwargs: Any) -> Any:
            with self._suspended():
                return function(*args, **kwargs)

        return original(suspended, *args, **kwargs)

    def to_numpy(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Of what gives a tensor's value to NumPy or Python."""
        cut = _cut(_WORDS[original.__name__], removable=False) if args and _is_recorded(args[0]) else None
        with self._suspended():
            value = original(*args, **kwargs)
        return value if cut is None else self._product(cut, value)

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


def _is_recorded(value: Any) -> bool:
    """Whether the tape records what is computed from it; while a graph is built, TensorFlow reads what it captures."""
    eager = tf.executing_eagerly() and isinstance(value, private("framework.ops").EagerTensor)
    return eager and bool(private("eager.record").should_record_backprop([value]))


# --- sites: the line of a call ---


def _folders(*packages: str) -> tuple[str, ...]:
    specs = [find_spec(package) for package in packages]
    return tuple(str(Path(spec.origin).parent) + "/" for spec in specs if spec is not None and spec.origin)


_FRAMEWORKS = _folders("tensorflow", "keras", "tf_keras")
_TRANSPARENT = (*_folders("gradaudit", "numpy"), functools.__file__)
_LIBRARIES = tuple({*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")})

#: What stands in TensorFlow and Keras between a user and what cuts, by folder or by function.
_WRAPPING = ("python/util/", "python/ops/weak_tensor_ops.py")
_WRAPPERS = ("stop_gradient", "convert_to_numpy", "numpy_function", "py_func")


def _cut(kind: str, *, removable: bool = True) -> Cut:
    """A cut at the line that calls: the first outside TensorFlow, Keras, NumPy and here."""
    frame, library = sys._getframe(1), False  # noqa: SLF001
    while True:
        path = frame.f_code.co_filename
        if path.startswith(_FRAMEWORKS):
            library = library or not (any(part in path for part in _WRAPPING) or frame.f_code.co_name in _WRAPPERS)
        elif not path.startswith(_TRANSPARENT):
            break
        if frame.f_back is None:
            break
        frame = frame.f_back
    line, column = _position(frame.f_code, frame.f_lasti)
    library = library or path.startswith(_LIBRARIES)
    function = frame.f_code.co_name
    return Cut(kind=kind, path=path, line=line, column=column, function=function, library=library, removable=removable)


@functools.lru_cache(maxsize=4096)
def _position(code: CodeType, instruction: int) -> tuple[int, int]:
    """Line and column; the instruction itself has other offsets once Python has specialised it."""
    line, _, column, _ = next(itertools.islice(code.co_positions(), instruction // 2, None), (None,) * 4)
    return line or 0, column or 0
