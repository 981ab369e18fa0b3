"""Where a JAX loss is taken over pairs: see `gradaudit.backends.broadcasts`. The traced loss is walked once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, final

import jax

from gradaudit.backends.broadcasts import Following, Kind, Value, may_pair
from gradaudit.backends.jax.cuts import CALLS, Chain, frames, jax_own, user_frame
from gradaudit.sites import Broadcast

__all__ = ["over_pairs"]

_PAIRING = {"sub", "mul", "div"}
_TAKING = {"slice", "dynamic_slice", "gather", "dynamic_index_in_dim"}
_SHAPING = {"reshape", "broadcast_in_dim", "squeeze", "transpose", "expand_dims", "convert_element_type", "copy"}
_SHAPING |= {"stop_gradient", "reduce_precision"}
_ELEMENTWISE = {
    *("add", "neg", "abs", "sign", "square", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow", "exp", "exp2", "expm1"),
    *("log", "log1p", "logistic", "tanh", "sin", "cos", "erf", "erfc", "max", "min", "clamp", "select_n"),
}
_CALLS = {*CALLS, "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def over_pairs(function: Callable[..., Any], parameters: dict[str, jax.Array], *arguments: Any) -> list[Broadcast]:
    """The accidental broadcasts of a loss, in the order of their sums.

    Raises:
        Exception: JAX's or the function's own, where it cannot be traced.
    """
    jaxpr = jax.make_jaxpr(function)(parameters, *arguments).jaxpr
    walking = _Walking(jaxpr.invars[: len(parameters)])
    walking.walk(jaxpr, ())
    return walking.following.found


@final
class _Walking:
    """Tells of each equation; a program that is called in several places has values of its own in each."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._count = itertools.count()
        self._values: dict[Any, int] = {p: next(self._count) for p in parameters}
        self._written: dict[int, tuple[int, ...]] = {}  # the shape before JAX promoted the rank
        self.following = Following(list(self._values.values()))

    def walk(self, jaxpr: Any, chain: Chain) -> None:
        """The equations of a program in their order."""
        readers: dict[Any, list[Any]] = {}
        for equation in jaxpr.eqns:
            for v in _variables(equation.invars):
                readers.setdefault(v, []).append(equation)
        for equation in jaxpr.eqns:
            inner = _called(equation)
            if inner is not None:
                self._call(inner, equation, chain)
                continue
            kind = _kind(equation, readers)
            inputs = [self._value(v) for v in _variables(equation.invars)]
            site = self._site(equation, inputs, chain) if may_pair(kind, inputs) else None
            for v in equation.outvars if inputs else ():
                if kind == "promoting":
                    self._written[self._value(v).key] = inputs[0].shape
                self.following.note(kind, inputs, self._value(v), site)

    def _call(self, inner: Any, equation: Any, chain: Chain) -> None:
        """Of a program, whose values are those of its caller."""
        outside = self._values
        given = zip(inner.invars, equation.invars, strict=True)
        self._values = {v: self._value(of).key for v, of in given if not hasattr(of, "val")}
        self.walk(inner, (*chain, equation))
        results = [None if hasattr(v, "val") else self._value(v).key for v in inner.outvars]
        self._values = outside
        outside.update({v: key for v, key in zip(equation.outvars, results, strict=True) if key is not None})

    def _site(self, equation: Any, inputs: Sequence[Value], chain: Chain) -> Broadcast | None:
        frame = user_frame(equation, chain)
        if frame is None:
            return None
        path, line, function, _, _ = frame
        shapes = tuple(self._written.get(x.key, x.shape) for x in inputs)
        name = function.rpartition(".")[2]
        return Broadcast(operation=equation.primitive.name, shapes=shapes, path=path, line=line, function=name)

    def _value(self, variable: Any) -> Value:
        if variable not in self._values:
            self._values[variable] = next(self._count)
        return Value(self._values[variable], tuple(variable.aval.shape))


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [v for v in atoms if not hasattr(v, "val")]


def _called(equation: Any) -> Any | None:
    """The program that an equation calls with its own arguments; None: it is no call."""
    if equation.primitive.name not in _CALLS:
        return None
    found = [p for name, p in equation.params.items() if name in ("jaxpr", "call_jaxpr", "fun_jaxpr")]
    inner = getattr(found[0], "jaxpr", found[0]) if found else None
    if inner is None or len(inner.invars) != len(equation.invars) or len(inner.outvars) != len(equation.outvars):
        return None
    return inner


def _kind(equation: Any, readers: dict[Any, list[Any]]) -> Kind:
    name = equation.primitive.name
    if name == "broadcast_in_dim" and _is_implicit(equation, readers):
        return "promoting"
    if name == "reduce_sum":
        return "adding"
    if name in _PAIRING:
        return "pairing"
    if name in _SHAPING:
        return "shaping"
    if name in _TAKING:
        return "taking"
    return "elementwise" if name in _ELEMENTWISE else "other"


def _is_implicit(equation: Any, readers: dict[Any, list[Any]]) -> bool:
    """Whether (N,) became (1, N) for an operation of another rank: in the same instruction of the same caller."""
    (result,) = equation.outvars
    if tuple(equation.params["broadcast_dimensions"]) != (1,) or len(result.aval.shape) != 2:
        return False
    here = _instruction(equation)
    return any(e.primitive.name in _PAIRING and _instruction(e) == here for e in readers.get(result, ()))


def _instruction(equation: Any) -> Any:
    """Code and offset of the innermost frame that is not JAX's own; equal to no other where there is none."""
    found = next((f[3:] for f in frames(equation.source_info.traceback) if not jax_own(f[0])), None)
    return object() if found is None else found
