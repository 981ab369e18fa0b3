"""A pure function of named arrays, as a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, final

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar, frozen_copy
from gradaudit.backends.jax import broadcasts, cuts, narrow, origin, replay, rules
from gradaudit.backends.jax.state import EXPLICIT, precision, preserved
from gradaudit.direction import Point, displace, stack
from gradaudit.errors import ModelContractError
from gradaudit.sites import Broadcast, CustomRule, Cut, Origin

__all__ = ["JaxModel", "Programs", "environment"]

#: What JAX raises where Python asks for a value that tracing does not have.
_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
#: By how much rounding may move a loss, relatively; random numbers move it further.
_SAME = 1e-4
#: So many points are worth a thread.
_LEAST_POINTS = 8


def environment() -> Mapping[str, str]:
    """The versions of JAX and jaxlib, and the platform that computes (cpu, gpu, tpu)."""
    return {
        "backend": "jax",
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "platform": jax.default_backend(),
    }


@final
class _Program:
    """A function, compiled; run as it is, op by op, once it turns out that its Python needs concrete values."""

    def __init__(self, function: Callable[..., Any], *, jit: bool) -> None:
        self._function = function
        self._jitted: Any = jax.jit(function) if jit else None

    def __call__(self, *arguments: Any) -> Any:
        if self._jitted is not None:
            try:
                return self._jitted(*arguments)
            except _NEEDS_VALUES:
                self._jitted = None
        return self._function(*arguments)

    def working_bytes(self, *arguments: Any) -> int:
        """The memory that XLA sets aside for intermediate values; 0 where nobody knows. Compiles, but does not run."""
        if self._jitted is None:
            return 0
        try:
            analysis = self._jitted.lower(*arguments).compile().memory_analysis()
        except Exception:  # noqa: BLE001  # the user's own error, which is for the call to raise, not for a question
            return 0
        return 0 if analysis is None else int(analysis.temp_size_in_bytes)


@final
class Programs:
    """The programs of one function. Models that share them share their compilations: one for each shape and dtype.

    Args:
        function: (parameters, further arguments) -> one number, pure.
        jit: compile them.
        forward: programs of a function with the same values, to be used where no derivative is wanted.
        batched: (stacked parameters, further arguments) -> their losses; by default vmap's.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        jit: bool = True,
        forward: Programs | None = None,
        batched: Callable[..., Any] | None = None,
    ) -> None:
        def loss(parameters: Any, *arguments: Any) -> Any:
            return _one_number(function(parameters, *arguments))

        def jvp(parameters: Any, tangents: Any, *arguments: Any) -> Any:
            return jax.jvp(lambda p: loss(p, *arguments), (parameters,), (tangents,))[1]

        def mapped(stacked: Any, *arguments: Any) -> Any:
            return jax.vmap(lambda p: loss(p, *arguments))(stacked)

        self.function: Callable[..., Any] = loss
        self.loss: _Program = _Program(loss, jit=jit) if forward is None else forward.loss
        self.batched: _Program = _Program(batched or mapped, jit=jit) if forward is None else forward.batched
        self.value_and_grad = _Program(jax.value_and_grad(loss), jit=jit)
        self.jvp = _Program(jvp, jit=jit)


@final
class JaxModel:
    """A scalar loss, a pure function of a dict of arrays, with JAX's derivatives.

    A float64 parameter makes a float64 model: it runs with 64-bit types enabled, in a scope of its own, whatever
    ``jax_enable_x64`` says. A model without one runs under the user's setting. JAX has no missing gradient: that of a
    parameter which the function does not use is zero.

    Args:
        function: ``dict[str, jax.Array] -> scalar``, jitted or not; or the `Programs` of one.
        parameters: the base point, floating-point arrays by name.
        jit: compile the function. One that needs concrete values is run op by op instead, points in a loop. Say False
            for a function with side effects or NumPy randomness, which compiling would run only once.
        arguments: what the function takes after the parameters, for example its data: not baked into the programs.
        working_bytes: memory that the loss takes beside its parameters; by default what XLA says, 0 where not compiled.
        n_threads: that share the points of a batch. XLA runs a program of many small operations on one core; a function
            that calls back into Python may not stand several at once.
    """

    def __init__(
        self,
        function: Callable[..., Any] | Programs,
        parameters: Mapping[str, Any],
        *,
        jit: bool = True,
        arguments: Sequence[Any] = (),
        working_bytes: int | None = None,
        n_threads: int = 1,
    ) -> None:
        self._programs = function if isinstance(function, Programs) else Programs(function, jit=jit)
        self._parameters = frozen_copy({name: np.asarray(p) for name, p in parameters.items()})
        with precision(self._parameters):
            self._arguments = jax.tree.map(jnp.asarray, tuple(arguments))
        self._jit = self._batches = jit
        self._defaults = True
        self._working_bytes = working_bytes
        self._n_threads = n_threads

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss as a NumPy scalar.

        Raises:
            ModelContractError: it is not one real floating-point number.
        """
        return as_scalar(self.evaluate(self._programs.loss, parameters), "loss()")

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss and its reverse-mode gradient, each tensor in the dtype of its parameter.

        Raises:
            ModelContractError: the loss is not one real floating-point number.
        """
        loss, gradients = self.evaluate(self._programs.value_and_grad, parameters)
        return as_scalar(loss, "value_and_grad()"), {name: gradients[name] for name in parameters}

    def jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """The directional derivative by forward mode.

        Raises:
            TypeError: JAX's own, where the function has a reverse rule only (``jax.custom_vjp``).
        """
        moves = {name: np.asarray(tangents[name], p.dtype) for name, p in parameters.items()}
        return float(self.evaluate(self._programs.jvp, parameters, moves))

    def evaluate(self, program: Callable[..., Any], *named: NamedArrays) -> Any:
        """What a program makes of named arrays and the model's arguments, in the model's precision; NumPy arrays."""
        with self._precision():
            arrays = [{name: jnp.asarray(a, a.dtype) for name, a in arrays.items()} for arrays in named]
            return jax.tree.map(np.asarray, program(*arrays, *self._arguments))

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        if self._working_bytes is None:
            self._working_bytes = int(self.evaluate(self._programs.loss.working_bytes, self._parameters))
        # padding can add half as many points
        return 3 * (self._working_bytes + sum(p.nbytes for p in self._parameters.values())) // 2

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,): by vmap, or in a loop where the function cannot be batched."""
        if not self._batches or len(points) < 2:
            return self._one_by_one(points)
        try:
            return self._together(points)
        except Exception:  # noqa: BLE001  # no one type says "no batching rule"; what is none, the loop raises again
            losses = self._one_by_one(points)
            self._batches = False
            return losses

    def _one_by_one(self, points: Sequence[Point]) -> Array:
        return np.array([self.loss(displace(self._parameters, point)) for point in points])

    def _together(self, points: Sequence[Point]) -> Array:
        n_parts = min(self._n_threads, max(1, len(points) // _LEAST_POINTS))
        if n_parts == 1:
            return self._batch(points)
        size = -(-len(points) // n_parts)
        parts = [points[i : i + size] for i in range(0, len(points), size)]
        with ThreadPoolExecutor(len(parts)) as pool:
            return np.concatenate(list(pool.map(self._batch, parts)))

    def _batch(self, points: Sequence[Point]) -> Array:
        # with the base point: a program for each number of points would be compiled otherwise
        n_padding = _padded(len(points)) - len(points)
        padded = [*points, *[Point(points[0].direction, 0.0)] * n_padding]
        losses: Array = self.evaluate(self._programs.batched, stack(self._parameters, padded))
        return losses[: len(points)]

    def at(self, parameters: NamedArrays) -> JaxModel:
        """The same function at another base point."""
        return self._at(parameters, defaults=self._defaults)

    def _at(self, parameters: NamedArrays, *, defaults: bool) -> JaxModel:
        model = JaxModel(
            self._programs, parameters, jit=self._jit, arguments=self._arguments, n_threads=self._n_threads
        )
        model._defaults = defaults
        return model

    def twin(self) -> JaxModel | None:
        """The same function from the same numbers in float64; None: it is float64 already.

        Where with 64-bit defaults it computes something else, for random numbers of the default dtype are others, its
        defaults stay as they are.
        """
        if all(p.dtype == np.float64 for p in self._parameters.values()):
            return None
        wide = {name: p.astype(np.float64) for name, p in self._parameters.items()}
        twin = self.at(wide)
        try:
            loss, wanted = float(twin.loss(wide)), float(self.loss(self._parameters))
        except TypeError:
            # with 64-bit defaults JAX (0.10) mistakes NumPy's 64-bit integers in a function that it ran without them
            return self._at(wide, defaults=not EXPLICIT)
        if not EXPLICIT or abs(loss - wanted) <= _SAME * abs(wanted):
            return twin
        other = self._at(wide, defaults=False)
        return other if abs(float(other.loss(wide)) - wanted) < abs(loss - wanted) else twin

    def narrow(self) -> float | None:
        """The coarsest format that the loss multiplies float32 numbers in: see `gradaudit.backends.jax.narrow`."""
        with self._precision():
            try:
                return narrow.narrowest(self._programs.function, self._named(), *self._arguments)
            except _NEEDS_VALUES:
                return None

    def cuts(self) -> Sequence[Cut]:
        """Where the traced loss stops the gradient of what depends on the parameters.

        Raises:
            Exception: JAX's or the function's own, where it cannot be traced.
        """
        with self._precision():
            return cuts.listed(self._programs.function, self._named(), *self._arguments)

    def without(self, cuts_: Collection[Cut]) -> JaxModel | None:
        """The same loss, whose gradient flows through these cuts; None: one lies in what cannot be taken apart."""
        with self._precision():
            return self._like(replay.removed(self._programs.function, cuts_, self._named(), *self._arguments))

    def holding(self, cuts_: Collection[Cut]) -> JaxModel | None:
        """The loss whose cut values stay those of the base point; None: one lies in a loop of unknown length."""
        base = dict(self._parameters)
        with self._precision():
            return self._like(replay.held(self._programs.function, cuts_, base, *self._arguments))

    def rules(self) -> Sequence[CustomRule]:
        """The traced loss's own derivatives, each compared with that of its primal.

        Raises:
            Exception: JAX's or the function's own, where it cannot be traced.
        """
        with self._precision():
            return rules.listed(self._programs.function, self._named(), *self._arguments)

    def replacing(self, rules_: Collection[CustomRule]) -> JaxModel | None:
        """The same loss with the derivatives of their primals; None: one lies in what cannot be taken apart."""
        with self._precision():
            return self._like(rules.replaced(self._programs.function, rules_, self._named(), *self._arguments))

    def origin(self) -> Origin | None:
        """Where the gradient at the base point stops being finite; None: nowhere, or the loss cannot be traced."""
        with self._precision():
            try:
                return origin.found(self._programs.function, self._named(), *self._arguments)
            except _NEEDS_VALUES:
                return None

    def broadcasts(self) -> Sequence[Broadcast]:
        """Where the loss is taken over pairs: see `gradaudit.backends.jax.broadcasts`.

        Raises:
            Exception: JAX's or the function's own, where it cannot be traced.
        """
        with self._precision():
            return broadcasts.over_pairs(self._programs.function, self._named(), *self._arguments)

    def _like(self, function: Callable[..., Any] | None) -> JaxModel | None:
        if function is None:
            return None
        model = JaxModel(function, self._parameters, jit=self._jit, arguments=self._arguments)
        model._defaults = self._defaults
        return model

    def _precision(self) -> AbstractContextManager[None]:
        return precision(self._parameters, defaults=self._defaults)

    def _named(self) -> dict[str, jax.Array]:
        return {name: jnp.asarray(p, p.dtype) for name, p in self._parameters.items()}

    def preserved(self) -> AbstractContextManager[None]:
        """Leave JAX's configuration as it was."""
        return preserved()

    def environment(self) -> Mapping[str, str]:
        """The versions of JAX and jaxlib, and the platform."""
        return environment()


def _padded(n: int) -> int:
    """The next power of two, or three quarters of it where that will do."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power


def _one_number(value: Any) -> Any:
    """The value as an array, checked while tracing, before JAX raises an error of its own about it."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        msg = f"the loss is a {type(value).__name__}, but it must be one number"
        raise ModelContractError(msg, where="loss()", hint="return the loss alone, without auxiliary values") from error
    # a tracer has a shape and a dtype, but no value
    as_scalar(np.broadcast_to(np.zeros((), array.dtype), array.shape), "loss()")
    return array
