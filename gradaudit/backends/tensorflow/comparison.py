"""A hand-written derivative in TensorFlow beside the derivative of its primal: by the tape, or by differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isfinite, nan
from typing import Any, NamedTuple, final

import numpy as np
import tensorflow as tf

from gradaudit.arrays import Array
from gradaudit.backends.tensorflow.eager import Rewritten, RuleCall, is_recorded
from gradaudit.backends.tensorflow.state import private

__all__ = ["UNKNOWN", "Comparison", "Error", "dense", "relative_error"]

#: Beyond these a difference to the tape's derivative of the primal is looked at by differences of the primal, too.
_SUSPECT, _SUSPECT_SINGLE = 1e-9, 1e-5
#: Steps of differences in units of the argument's size, and how well two steps must agree.
_STEPS, _AGREE = (1e-3, 1e-5), 1e-7
_STEPS_SINGLE, _AGREE_SINGLE = (3e-2, 3e-3), 1e-2
_DIRECTIONS = 3


class Error(NamedTuple):
    """The largest relative error, and the number of its argument among those that have a gradient.

    Captured: the number after the last argument, if the primal takes more from the parameters than its arguments.
    """

    error: float
    argument: int
    captured: int = 0

    def rank(self) -> tuple[bool, float]:
        """A rule that cannot be compared somewhere is right if it is elsewhere."""
        return isfinite(self.error), self.error


UNKNOWN = Error(nan, 0)


class _NotComparableError(Exception):
    """No derivative of the primal to compare with."""


@final
class Comparison:
    """A rule beside the derivative of its primal, on the arguments of one execution that depend on parameters."""

    def __init__(self, call: RuleCall, run: Rewritten, upstream: Sequence[Any] = ()) -> None:
        self._call, self._run, self._upstream = call, run, upstream
        self._leaves = tf.nest.flatten((call.args, call.kwargs))
        differentiable = [i for i, leaf in enumerate(self._leaves) if _has_gradient(leaf)]
        self._numbers = {leaf: number for number, leaf in enumerate(differentiable)}
        self._compared = [i for i in differentiable if is_recorded(self._leaves[i])]
        self._random = np.random.default_rng(0)

    def error(self) -> Error:
        """NaN where the rule, or its primal, raises."""
        try:
            self._weights = self._weighting()
            self._rule = self._gradients(self._ruled)
            self._truth = self._differentiated()
            found = [Error(self._error_of(i), self._numbers[i]) for i in self._compared]
            return max(found, key=Error.rank, default=UNKNOWN)._replace(captured=self._captured())
        except Exception:  # noqa: BLE001  # the user's code, called for something else than the loss
            return UNKNOWN

    def _differentiated(self) -> list[Array | None]:
        nothing: list[Array | None] = [None] * len(self._compared)
        self._run.left = False
        try:
            truth = self._gradients(self._primal)
        except Exception:  # noqa: BLE001  # an operation without a derivative raises, whatever it likes
            return nothing
        return nothing if self._run.left else truth  # the tape lacks a part

    def _captured(self) -> int:
        """Arguments that are nobody's, and still the tape of the loss records what comes of them."""
        results = tf.nest.flatten(self._primal(*self._packed(self._copies())))
        return len(self._numbers) if any(map(is_recorded, results)) else 0

    def _error_of(self, i: int) -> float:
        k = self._compared.index(i)
        rule, truth = self._rule[k], self._truth[k]
        single = _is_single(self._leaves[i])
        if truth is not None and np.isfinite(truth).all():
            error = relative_error(np.zeros_like(truth) if rule is None else rule, truth)
            if error <= (_SUSPECT_SINGLE if single else _SUSPECT):
                return error
            # the tape may round where the rule does not; two that tell the same are believed
            other = self._numeric(i, rule, single=single)
            return other if other < error / 100 else error
        return self._numeric(i, rule, single=single)

    # --- by the tape ---

    def _ruled(self, args: Any, kwargs: Any) -> Any:
        with self._run.originals():
            return self._call.decorator(self._call.function, args, kwargs)

    def _primal(self, args: Any, kwargs: Any) -> Any:
        return self._run.primal(self._call.function, args, kwargs)

    def _gradients(self, function: Callable[[Any, Any], Any]) -> list[Array | None]:
        """Of the weighted sum of results with respect to each argument, told apart by its position."""
        leaves = self._copies()
        sources = [leaves[i] for i in self._compared]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            results = _differentiable(function(*self._packed(leaves)))
        gradients = tape.gradient(results, sources, output_gradients=self._weights)
        return [dense(g) for g in gradients]

    def _copies(self) -> list[Any]:
        """The arguments; one tensor passed twice is two, and the tape of the loss knows none of them."""
        with private("eager.record").stop_recording():
            return [tf.identity(leaf) if i in self._numbers else leaf for i, leaf in enumerate(self._leaves)]

    def _packed(self, leaves: Sequence[Any]) -> Any:
        return tf.nest.pack_sequence_as((self._call.args, self._call.kwargs), leaves)

    def _weighting(self) -> list[Any]:
        """The gradients that the rule was given; random ones if they tell nothing."""
        results = _differentiable(self._call.result)
        given = [
            g for r, g in zip(tf.nest.flatten(self._call.result), self._upstream, strict=False) if _has_gradient(r)
        ]
        with private("eager.record").stop_recording():
            weights = [tf.identity(g) for g in given]
        if len(given) == len(results) and any(map(np.any, weights)) and all(np.isfinite(w).all() for w in weights):
            return weights
        return [self._weight(result) for result in results]

    def _weight(self, result: Any) -> Any:
        weight = self._random.standard_normal(result.shape)
        if result.dtype.is_complex:
            weight = weight + 1j * self._random.standard_normal(result.shape)
        return tf.cast(tf.constant(weight), result.dtype)

    # --- by differences ---

    def _numeric(self, i: int, rule: Array | None, *, single: bool) -> float:
        """The error along a few directions, in float64 where the primal can; NaN where it has no derivative."""
        if self._leaves[i].dtype.is_complex:
            return nan
        for wide in (True, False) if single else (True,):
            try:
                return self._along(i, rule, wide=wide)
            except _NotComparableError:
                return nan
            except Exception:  # noqa: BLE001, S112  # the primal is not for float64
                continue
        return nan

    def _along(self, i: int, rule: Array | None, *, wide: bool) -> float:
        leaves = [
            tf.cast(leaf, tf.float64) if wide and _has_gradient(leaf) and not leaf.dtype.is_complex else leaf
            for leaf in self._copies()
        ]
        at = np.asarray(leaves[i], np.float64)
        size = float(np.sqrt(np.mean(at**2))) or 1.0
        found, true = [], []
        for _ in range(_DIRECTIONS):
            direction = self._random.standard_normal(at.shape)

            def moved(t: float, direction: Array = direction) -> float:
                leaves[i] = tf.cast(tf.constant(at + t * size * direction), leaves[i].dtype)
                return self._weighted(self._primal(*self._packed(leaves)), wide=wide)

            slope = 0.0 if rule is None else float(np.sum(np.asarray(rule, np.float64) * direction))
            found.append(slope)
            true.append(_slope(moved, wide=wide, beside=slope * size) / size)
        return relative_error(np.array(found), np.array(true))

    def _weighted(self, results: Any, *, wide: bool) -> float:
        flat = _differentiable(results)
        if wide and any(map(_is_single, flat)):
            msg = "results in single precision of arguments in double"
            raise TypeError(msg)
        pairs: Iterable[tuple[Any, Any]] = zip(flat, self._weights, strict=True)
        return sum(float(np.sum((np.conj(np.asarray(w)) * np.asarray(r)).real.astype(np.float64))) for r, w in pairs)


def dense(gradient: Any) -> Array | None:
    """As an array; a sparse one may name a row more than once, which adds up."""
    return None if gradient is None else np.asarray(tf.convert_to_tensor(gradient))


def _has_gradient(leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor) and (leaf.dtype.is_floating or leaf.dtype.is_complex)


def _is_single(tensor: Any) -> bool:
    """Or half."""
    return bool(tensor.dtype.real_dtype.size < 8)


def _differentiable(results: Any) -> list[Any]:
    return [r for r in tf.nest.flatten(results) if _has_gradient(r)]


def relative_error(found: Array, true: Array) -> float:
    """The error relative to the truth, or, where that is zero, to what was found."""
    found, true = (a.astype(np.complex128 if a.dtype.kind == "c" else np.float64) for a in (found, true))
    size, other = float(np.linalg.norm(true)), float(np.linalg.norm(found))
    error = float(np.linalg.norm(found - true))
    return 0.0 if error == 0 else error / (size if size > 1e-9 * other else other)


def _slope(function: Callable[[float], float], *, wide: bool, beside: float) -> float:
    """At 0, by differences of fourth order.

    Raises:
        _NotComparableError: other steps give other slopes.
    """
    steps, agree = (_STEPS, _AGREE) if wide else (_STEPS_SINGLE, _AGREE_SINGLE)
    for step in steps:
        one, other = _difference(function, step), _difference(function, step / 2)
        if abs(one - other) <= agree * max(abs(other), abs(beside)):
            return other
    msg = "the primal is not smooth there"
    raise _NotComparableError(msg)


def _difference(function: Callable[[float], float], step: float) -> float:
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)
