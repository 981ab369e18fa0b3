"""Where a JAX gradient stops being finite.

The traced loss is run forwards and backwards on concrete values, one equation at a time, each with its own `jax.vjp`:
so every cotangent belongs to an equation of the loss, which has its line. Calls, branches and scans run as a whole
first; only the one at fault is taken apart, a scan to the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.extend.core import jaxpr_as_fun

from gradaudit.backends.jax.cuts import (
    CALLS,
    Chain,
    Function,
    frames,
    installed,
    is_real,
    scan_sizes,
    tainted,
    user_frame,
)
from gradaudit.backends.jax.replay import bind
from gradaudit.backends.jax.rules import is_rule, rule
from gradaudit.sites import Origin

__all__ = ["found"]

#: What was not finite: an operation, or already the input with this index; None: a constant, or nobody knows.
_Culprit: TypeAlias = Origin | int | None

#: Names of JAX that users write differently.
_WRITTEN = {"integer_pow": "pow", "atan2": "arctan2", "select_n": "where"} | {
    f"a{name}": f"arc{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")
}


def found(function: Function, *arguments: Any) -> Origin | None:
    """Of the gradient with respect to the first argument; None: it is finite."""
    closed = jax.make_jaxpr(function)(*arguments)
    leaves = jax.tree.leaves(arguments)
    n_parameters = len(jax.tree.leaves(arguments[0]))
    level = _Level(closed.jaxpr, closed.consts, leaves, [i < n_parameters for i in range(len(leaves))], ())
    origin = level.backward([_filled(v, 1) for v in closed.jaxpr.outvars])
    return origin if isinstance(origin, Origin) else None


@dataclass(slots=True)
class _Level:
    """One program, run forwards on concrete values.

    Attributes:
        jaxpr: the program.
        consts: its constants.
        given: its inputs.
        active: which of them depend on parameters.
        chain: the equations that it lies in.
        known: variable to value.
        moving: the variables that depend on parameters, through what passes a gradient.
    """

    jaxpr: Any
    consts: Sequence[Any]
    given: Sequence[Any]
    active: Sequence[bool]
    chain: Chain
    known: dict[Any, Any] = field(init=False)
    moving: set[Any] = field(init=False)

    def __post_init__(self) -> None:
        inputs = (*self.jaxpr.constvars, *self.jaxpr.invars)
        self.known = dict(zip(inputs, (*self.consts, *self.given), strict=True))
        self.moving = {v for v, a in zip(self.jaxpr.invars, self.active, strict=True) if a and is_real(v)}
        for equation in self.jaxpr.eqns:
            with equation.ctx.manager:
                results = bind(equation, self.values(equation.invars))
            self.known.update(zip(equation.outvars, results, strict=True))
            depends = tainted(equation, self.depends(equation))
            self.moving |= {v for v, d in zip(equation.outvars, depends, strict=True) if d and is_real(v)}

    def values(self, variables: Sequence[Any]) -> list[Any]:
        """Of variables and literals."""
        return [v.val if hasattr(v, "val") else self.known[v] for v in variables]

    def depends(self, equation: Any) -> list[bool]:
        """Which of its inputs pass a gradient on."""
        return [not hasattr(v, "val") and v in self.moving for v in equation.invars]

    def backward(self, cotangents: Sequence[Any]) -> _Culprit:
        """What makes the gradient of the inputs non-finite, from finite cotangents of the results."""
        sums: dict[Any, Any] = {}
        blamed: dict[Any, _Culprit] = {}
        for variable, cotangent in zip(self.jaxpr.outvars, cotangents, strict=True):
            if not hasattr(variable, "val") and variable in self.moving:
                sums[variable] = sums[variable] + cotangent if variable in sums else cotangent
        for equation in reversed(self.jaxpr.eqns):
            depends = self.depends(equation)
            if not any(depends) or not any(v in sums for v in equation.outvars):
                continue
            incoming = [sums.get(v) for v in equation.outvars]
            given = self.values(equation.invars)
            outgoing = _pulled(_bound(equation), given, depends, list(map(is_real, equation.outvars)), incoming)
            culprit: _Culprit = None
            if not all(map(_finite, outgoing)):
                earlier = [v for v in equation.outvars if v in sums and not _finite(sums[v])]
                culprit = blamed.get(earlier[0]) if earlier else self._culprit(equation, incoming)
            targets = [v for v, d in zip(equation.invars, depends, strict=True) if d]
            for variable, cotangent in zip(targets, outgoing, strict=True):
                sums[variable] = sums[variable] + cotangent if variable in sums else cotangent
                if not _finite(cotangent):
                    blamed.setdefault(variable, culprit)
        return next((blamed[v] for v in self.jaxpr.invars if blamed.get(v) is not None), None)

    def forward(self, variable: Any) -> _Culprit:
        """What made this value non-finite."""
        maker = next((e for e in self.jaxpr.eqns if variable in e.outvars), None)
        if maker is None:
            return self.jaxpr.invars.index(variable) if variable in self.jaxpr.invars else None
        given = self.values(maker.invars)
        if all(map(_finite, given)):
            inside = _forward_inside(maker, given, self.depends(maker), self.chain)
            return inside if isinstance(inside, Origin) else _named(maker, self.chain, forward=True)
        return next((c for c in map(self.forward, self._non_finite(maker.invars)) if c is not None), None)

    def _non_finite(self, variables: Sequence[Any]) -> list[Any]:
        return [v for v in variables if not hasattr(v, "val") and not _finite(self.known[v])]

    def _culprit(self, equation: Any, incoming: Sequence[Any]) -> _Culprit:
        """Of an equation that makes non-finite cotangents out of finite ones."""
        given = self.values(equation.invars)
        cotangents = [_filled(v, 0) if c is None else c for v, c in zip(equation.outvars, incoming, strict=True)]
        inside = _backward_inside(equation, given, self.depends(equation), cotangents, self.chain)
        if isinstance(inside, Origin):
            return inside
        # a value that was not finite before: what made it so is to be named, unless it is a constant
        suspects = self._non_finite(equation.invars if inside is None else [equation.invars[inside]])
        for earlier in map(self.forward, suspects):
            if isinstance(earlier, Origin) or (earlier is not None and self.chain):
                return earlier
        return _named(equation, self.chain, forward=not all(map(_finite, self.values(equation.outvars))))


def _backward_inside(
    equation: Any, given: list[Any], depends: list[bool], cotangents: list[Any], chain: Chain
) -> _Culprit:
    if equation.primitive.name == "scan":
        return _Steps(equation, given, depends, chain).backward(cotangents)
    opened = _opened(equation, given, depends, chain)
    if opened is None:
        return None
    level, skipped = opened
    culprit = level.backward(cotangents)
    return culprit + skipped if isinstance(culprit, int) else culprit


def _forward_inside(equation: Any, given: list[Any], depends: list[bool], chain: Chain) -> _Culprit:
    if equation.primitive.name == "scan":
        return _Steps(equation, given, depends, chain).forward()
    opened = _opened(equation, given, depends, chain)
    return None if opened is None else _first_result(opened[0])


def _first_result(level: _Level) -> _Culprit:
    results = [v for v in level.jaxpr.outvars if not hasattr(v, "val") and not _finite(level.known[v])]
    return level.forward(results[0]) if results else None


def _opened(equation: Any, given: list[Any], depends: list[bool], chain: Chain) -> tuple[_Level, int] | None:
    """The program that a call or a branch runs, and how many inputs of the equation come before its own."""
    name, p = equation.primitive.name, equation.params
    if name in CALLS:
        sub, skipped = p["jaxpr"], 0
    elif name == "cond":
        sub, skipped = p["branches"][int(np.clip(given[0], 0, len(p["branches"]) - 1))], 1
    else:
        return None
    jaxpr, consts = (sub.jaxpr, sub.consts) if hasattr(sub, "consts") else (sub, ())
    return _Level(jaxpr, consts, given[skipped:], depends[skipped:], (*chain, equation)), skipped


class _Steps:
    """A scan, run forwards; its steps can be opened one by one."""

    def __init__(self, equation: Any, given: list[Any], depends: list[bool], chain: Chain) -> None:
        p = equation.params
        self._equation, self._body, self._chain = equation, p["jaxpr"], (*chain, equation)
        self._n_consts, self._n_carry = n, m = scan_sizes(equation)
        self._consts, self._xs = given[:n], given[n + m :]
        self._active = [*depends[:n], *tainted(equation, depends)[:m], *depends[n + m :]]
        self._active = [a and is_real(v) for a, v in zip(self._active, self._body.jaxpr.invars, strict=True)]
        self._options = {"length": p["length"], "reverse": p["reverse"]}
        order = range(p["length"])
        self._order = list(reversed(order)) if p["reverse"] else list(order)

        def step(carry: Any, x: Any) -> Any:
            results = jaxpr_as_fun(self._body)(*self._consts, *carry, *x)
            return results[:m], (carry, _all_finite(carry), _all_finite(results))

        # the carries before each step
        self._carries, before, after = lax.scan(step, given[n : n + m], self._xs, **self._options)[1]
        self._finite_before, self._finite_after = np.asarray(before), np.asarray(after)

    def backward(self, cotangents: list[Any]) -> _Culprit:
        """See `_Level.backward`."""
        n, m = self._n_consts, self._n_carry
        real = list(map(is_real, self._body.jaxpr.outvars))
        moving = self._active[n : n + m]

        def step(ct: Any, at: Any) -> Any:
            carry, x, ct_ys = at
            given = [*self._consts, *carry, *x]
            back = _pulled(jaxpr_as_fun(self._body), given, self._active, real, [*ct, *ct_ys])
            before = list(back[sum(self._active[:n]) :])
            earlier = [before.pop(0) if a else old for a, old in zip(moving, ct, strict=True)]
            return earlier, (ct, _all_finite(ct), _all_finite(back))

        options = {**self._options, "reverse": not self._options["reverse"]}
        at = self._carries, self._xs, cotangents[m:]
        cts, *flags = lax.scan(step, cotangents[:m], at, **options)[1]
        before, after = map(np.asarray, flags)
        for t in reversed(self._order):
            if before[t] and not after[t]:
                culprit = self._level(t).backward([c[t] for c in (*cts, *cotangents[m:])])
                if isinstance(culprit, int) and n <= culprit < n + m:
                    culprit = self.forward()
                if culprit is not None:
                    return culprit
        return None

    def forward(self) -> _Culprit:
        """What makes a result non-finite, in the first step that has one; else what came in is not finite."""
        for t in self._order:
            if not self._finite_before[t]:
                carry = [_finite(c[t]) for c in self._carries]
                return int(self._n_consts) + carry.index(False)
            if not self._finite_after[t]:
                return _first_result(self._level(t))
        return None

    def _level(self, t: int) -> _Level:
        given = [*self._consts, *(c[t] for c in self._carries), *(x[t] for x in self._xs)]
        return _Level(self._body.jaxpr, self._body.consts, given, self._active, self._chain)


def _bound(equation: Any) -> Function:
    def run(*given: Any) -> list[Any]:
        with equation.ctx.manager:
            return bind(equation, given)

    return run


def _pulled(
    function: Callable[..., Sequence[Any]],
    given: Sequence[Any],
    active: Sequence[bool],
    real: Sequence[bool],
    incoming: Sequence[Any],
) -> list[Any]:
    """The cotangents of the active inputs from those of the results; None among these is zero."""

    def of_active(*moving: Any) -> list[Any]:
        values = iter(moving)
        results = function(*(next(values) if a else g for a, g in zip(active, given, strict=True)))
        return [result for result, r in zip(results, real, strict=True) if r]

    results, back = jax.vjp(of_active, *(g for a, g in zip(active, given, strict=True) if a))
    wanted = [c for c, r in zip(incoming, real, strict=True) if r]
    return list(back([jnp.zeros_like(x) if c is None else c for x, c in zip(results, wanted, strict=True)]))


def _filled(variable: Any, value: int) -> Any:
    return jnp.full(variable.aval.shape, value, variable.aval.dtype)


def _all_finite(arrays: Sequence[Any]) -> Any:
    real = [a for a in arrays if jnp.issubdtype(a.dtype, np.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(a).all() for a in real], bool))


def _finite(array: Any) -> bool:
    real = jnp.issubdtype(jnp.result_type(array), np.inexact)
    # by NumPy: JAX would compile a program for each shape
    return not real or bool(np.isfinite(np.asarray(array)).all())


def _named(equation: Any, chain: Chain, *, forward: bool) -> Origin:
    """As the user calls it: a function of JAX is named, not what it is made of."""
    name = rule(equation, chain).name if is_rule(equation) else equation.primitive.name
    for i in reversed(range(len(chain))):
        if chain[i].primitive.name not in ("jit", "pjit"):
            continue
        if not _of_library(equation, chain[i].params["jaxpr"].jaxpr.debug_info):
            break
        name, equation, chain = chain[i].params["name"], chain[i], chain[:i]
    frame = user_frame(equation, chain)
    path, line, function = frame[:3] if frame else ("", 0, "")
    name = name.lstrip("_")
    return Origin(operation=_WRITTEN.get(name, name), path=path, line=line, function=function, forward=forward)


def _of_library(equation: Any, traced: Any) -> bool:
    """Whether an equation of a traced function is a library's, not of a function of the user's that it calls."""
    path = getattr(traced, "func_filename", None)
    if not path or not installed(path):
        return False
    for frame in frames(equation.source_info.traceback):
        if frame[0] == path and frame[3].co_name == traced.func_name:
            return True  # what is further out may be another call, for which it was traced first
        if not installed(frame[0]):
            return False
    return True
