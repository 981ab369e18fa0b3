"""Derivatives written by hand in a JAX program, each compared with the derivative of its own primal.

The traced loss keeps both: the rule, and the program that it is the rule of. The rules' inputs are observed in one run
of the loss, in which loops stay loops; nothing is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import numpy as jnp

from gradaudit.backends.jax.cuts import (
    CALLS,
    Chain,
    Function,
    Key,
    frames,
    installed,
    is_cut,
    is_real,
    jax_own,
    key,
    live,
    scan_sizes,
    site,
    supported,
    user_frame,
    walk,
)
from gradaudit.backends.jax.replay import Run, bind, evaluated, observed, places
from gradaudit.sites import CustomRule, definition

__all__ = ["is_rule", "listed", "replaced", "rule"]

#: The slope of the results' sum with these weights when one argument moves.
_Slope: TypeAlias = Callable[[int, Any, list[Any]], Any]

_KINDS = {"custom_vjp_call": "custom_vjp", "custom_jvp_call": "custom_jvp"}
#: Where JAX makes rules of what it is given: not where any rule is written.
_MACHINERY = "custom_derivatives.py"
_DIRECTIONS, _MOST_SAMPLES = 3, 16
#: Along a line, in units of the input's size: the fifth root of the precision, for a difference of fourth order.
_STEP_POWER = 0.2


def listed(function: Function, *arguments: Any) -> list[CustomRule]:
    """The rules that the loss runs between its first argument and its result, in the order of the program.

    JAX's own are not compared. They, and rules in what cannot be taken apart, are counted as the program says, with one
    execution in a loop of unknown length and in a branch, taken or not; the others as often as they run.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    calls = _calls(closed.jaxpr, len(jax.tree.leaves(arguments[0])))
    leaves = jax.tree.leaves(arguments)
    times = _times(closed, calls, leaves)
    calls = [call for call in calls if times[call.place]]
    samples = _sampled([call for call in calls if call.comparable])
    wanted = {c.place: sorted({0, times[c.place] // 2, times[c.place] - 1}) for c in samples}
    seen = observed(closed, wanted, leaves) if wanted else {}
    found: dict[CustomRule, CustomRule] = {}
    for call in calls:
        before = found.get(call.rule, replace(call.rule, executions=0))
        errors = [_compared(call, given) for given in seen[call.place][1]] if call.place in seen else []
        error, argument = _worst([(before.error, before.argument), *errors])
        ran = before.executions + times[call.place]
        found[call.rule] = replace(before, executions=ran, error=error, argument=argument)
    return list(found.values())


def replaced(function: Function, rules: Collection[CustomRule], *arguments: Any) -> Function | None:
    """The same function with the derivatives of these rules' primals; None: one lies in what cannot be taken apart."""
    wanted = frozenset(rules)

    def chosen(equation: Any, chain: Chain) -> bool:
        return is_rule(equation) and rule(equation, chain) in wanted

    if not all(supported(chain) for _, chain in places(function, chosen, arguments)):
        return None
    return evaluated(function, chosen, _primal)


def is_rule(equation: Any) -> bool:
    """Whether its derivative is written by hand."""
    return equation.primitive.name in _KINDS


def rule(equation: Any, chain: Chain) -> CustomRule:
    """Where it is written: the backward or tangent function, or what it belongs to, or the line of the call."""
    kind = _KINDS[equation.primitive.name]
    primal = equation.params["call_jaxpr"].jaxpr
    derivative = equation.params["bwd" if kind == "custom_vjp" else "jvp_jaxpr_fun"]
    name, path, line = _source(primal)
    own, own_line = _source(derivative)[1:]
    if own and not own.endswith(_MACHINERY):
        path, line = own, own_line
    elif path.endswith(_MACHINERY):  # `jax.custom_gradient` calls the user's function from there
        kind, (name, path, line) = "custom_gradient", _called_by_machinery(primal)
    if not path:
        frame = user_frame(equation, chain)
        path, line = frame[:2] if frame else ("", 0)
    return CustomRule(kind=kind, name=name or kind, path=path, line=line, library=installed(path))


def _source(traced: Any) -> tuple[str, str, int]:
    """Name, file and line of a function that JAX has traced; empty where it has no code of its own."""
    info = getattr(traced, "debug_info", None)
    path = getattr(info, "func_filename", None)
    return (info.func_name, path, definition(path, int(info.func_lineno or 0))) if info and path else ("", "", 0)


def _called_by_machinery(primal: Any) -> tuple[str, str, int]:
    for equation in primal.eqns:
        inner = ("", "", 0)
        for path, _, _, code, _ in frames(equation.source_info.traceback):
            if path.endswith(_MACHINERY):
                break
            if not installed(path):
                inner = code.co_qualname.rpartition("<locals>.")[2], path, definition(path, code.co_firstlineno)
        if inner[0]:
            return inner
    return "", "", 0


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One equation that calls a rule."""

    equation: Any
    chain: Chain
    times: int
    rule: CustomRule
    depends: list[bool]
    matters: list[bool]

    @property
    def place(self) -> Key:
        return key(self.equation, self.chain)

    @property
    def counted(self) -> bool:
        """Whether the program says how often it runs."""
        return not any(e.primitive.name in ("while", "cond") for e in self.chain)

    @property
    def comparable(self) -> bool:
        return supported(self.chain) and not jax_own(self.rule.path)

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(str(v.aval) for v in self.equation.invars)

    @property
    def arguments(self) -> list[list[int]]:
        """The inputs through which a gradient passes, those that are one variable together."""
        groups: dict[Any, list[int]] = {}
        for i, variable in enumerate(self.equation.invars):
            if self.depends[i] and is_real(variable):
                groups.setdefault(_outermost(variable, self.chain), []).append(i)
        return list(groups.values())


def _calls(jaxpr: Any, n_parameters: int) -> list[_Call]:
    alive = live(jaxpr, n_parameters, through_cuts=False)
    return [
        _Call(equation, chain, times, rule(equation, chain), *alive[key(equation, chain)])
        for equation, chain, times in walk(jaxpr)
        if is_rule(equation) and key(equation, chain) in alive
    ]


def _outermost(variable: Any, chain: Chain) -> Any:
    """What a variable is called where it is made: two arguments of a call may be the same one."""
    for enclosing in reversed(chain):
        name, p = enclosing.primitive.name, enclosing.params
        if name in CALLS:
            sub, fixed, skip = p["jaxpr"], len(enclosing.invars), 0
        elif name == "scan":
            sub, fixed, skip = p["jaxpr"], scan_sizes(enclosing)[0], 0
        elif name == "while":
            sub, fixed, skip = p["body_jaxpr"], p["body_nconsts"], p["cond_nconsts"]
        else:
            break
        inside = list(getattr(sub, "jaxpr", sub).invars)[:fixed]
        if variable not in inside:
            break
        variable = enclosing.invars[skip + inside.index(variable)]
        if hasattr(variable, "val"):
            break
    return id(variable)


def _sampled(calls: Sequence[_Call]) -> list[_Call]:
    """Some calls of a rule on inputs of one shape: a line may make several rules, which differ."""
    alike: dict[Any, list[_Call]] = {}
    for call in calls:
        alike.setdefault((call.rule, call.shapes), []).append(call)
    spread = ((group, np.linspace(0, len(group) - 1, min(len(group), _MOST_SAMPLES))) for group in alike.values())
    return [group[int(i)] for group, positions in spread for i in positions]


def _times(closed: Any, calls: Sequence[_Call], leaves: Sequence[Any]) -> dict[Key, int]:
    unknown: dict[Key, list[int]] = {c.place: [] for c in calls if c.comparable and not c.counted}
    seen = observed(closed, unknown, leaves) if unknown else {}
    return {c.place: int(seen[c.place][0]) if c.place in seen else c.times for c in calls}


def _primal(_run: Run, equation: Any, given: Sequence[Any], chain: Chain) -> list[Any]:
    """What a rule is the derivative of, with the rules and cuts below it removed; JAX's own stay."""

    def chosen(equation: Any, chain: Chain) -> bool:
        within = tuple(e for e in chain if not is_rule(e))
        if not supported(within):
            return False
        if is_rule(equation):
            return not jax_own(rule(equation, chain).path)
        return is_cut(equation) and equation.primitive.name == "stop_gradient" and not site(equation, chain).library

    def act(run: Run, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        return given if is_cut(equation) else _primal(run, equation, given, chain)

    closed = equation.params["call_jaxpr"]
    return Run(chosen, act).evaluate(closed.jaxpr, closed.consts, list(given), (*chain, equation))


def _compared(call: _Call, given: Sequence[Any]) -> tuple[float, int]:
    """The largest relative error over the arguments, and which it is: by the first way that can be gone."""
    groups, equation = call.arguments, call.equation
    results = [i for i, v in enumerate(equation.outvars) if call.matters[i] and is_real(v)]

    def of(function: Callable[[list[Any]], list[Any]]) -> Function:
        def moved(*moving: Any) -> list[Any]:
            every = list(given)
            for group, value in zip(groups, moving, strict=True):
                for i in group:
                    every[i] = value
            with equation.ctx.manager:
                found = function(every)
            return [found[i] for i in results]

        return moved

    own = of(lambda every: bind(equation, every))
    true = of(lambda every: _primal(Run(lambda *_: False, _primal), equation, every, call.chain))
    at = [given[group[0]] for group in groups]
    real = [i for i, v in enumerate(equation.invars) if is_real(v)]
    for way in (_by_reverse, _by_forward, _by_differences):
        # no one type says "no such derivative", and the user's rule may raise what it likes
        with suppress(Exception):
            errors = np.asarray(jax.jit(lambda at, way=way: way(own, true, at))(at), float)
            return _worst([(float(e), real.index(group[0])) for e, group in zip(errors, groups, strict=True)])
    return float("nan"), 0


def _worst(errors: Iterable[tuple[float, int]]) -> tuple[float, int]:
    return max(((e, i) for e, i in errors if not np.isnan(e)), default=(float("nan"), 0), key=lambda pair: pair[0])


def _random(like: Sequence[Any], seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in like]


def _by_reverse(own: Function, true: Function, at: list[Any]) -> Any:
    (results, back), (_, true_back) = jax.vjp(own, *at), jax.vjp(true, *at)
    weights = _random(results, 0)
    return _errors(back(weights), true_back(weights), at, _size(results) * _size(weights))


def _by_forward(own: Function, true: Function, at: list[Any]) -> Any:
    return _by_slopes(own, _tangents(true, at), at)


def _by_differences(own: Function, true: Function, at: list[Any]) -> Any:
    def slope(i: int, move: Any, weights: list[Any]) -> Any:
        size = jnp.max(jnp.abs(at[i]), initial=0)
        h = float(jnp.finfo(at[i].dtype).eps) ** _STEP_POWER * jnp.where(size > 0, size, 1)

        def values(k: int) -> list[Any]:
            return list(true(*at[:i], (at[i] + k * h * move).astype(at[i].dtype), *at[i + 1 :]))

        # the results are subtracted, not their products: fewer digits are lost
        near, far = ([b - a for a, b in zip(values(-k), values(k), strict=True)] for k in (1, 2))
        return (8 * _dot(weights, near) - _dot(weights, far)) / (12 * h)

    return _by_slopes(own, slope, at)


def _tangents(function: Function, at: list[Any]) -> _Slope:
    def slope(i: int, move: Any, weights: list[Any]) -> Any:
        def along(value: Any) -> Any:
            return function(*at[:i], value, *at[i + 1 :])

        return _dot(weights, jax.jvp(along, (at[i],), (move,))[1])

    return slope


def _by_slopes(own: Function, slope: _Slope, at: list[Any]) -> Any:
    """The rule beside slopes of the primal along random directions."""
    results = own(*at)
    weights = _random(results, 0)
    try:
        gradient = jax.vjp(own, *at)[1](weights)
    except Exception:  # noqa: BLE001  # a tangent rule that cannot be turned round, for example with a loop in it
        mine = _tangents(own, at)
    else:

        def mine(i: int, move: Any, _weights: list[Any]) -> Any:
            return _dot([gradient[i]], [move])

    moves = [_random(at, 1 + k) for k in range(_DIRECTIONS)]
    found, expected = (
        [jnp.stack([of(i, move[i], weights) for move in moves]) for i in range(len(at))] for of in (mine, slope)
    )
    return _errors(found, expected, at, _size(results) * _size(weights))


def _errors(found: Sequence[Any], expected: Sequence[Any], at: Sequence[Any], whole: Any) -> Any:
    """Relative errors, of elements whose expected value is finite; NaN: of none.

    An argument whose relative changes hardly move the results has the rounding of those: its own size is no measure.
    """
    errors = []
    for mine, true, value in zip(found, expected, at, strict=True):
        usable = jnp.isfinite(true)
        difference, norm, own = (_size([jnp.where(usable, x, 0)]) for x in (mine - true, true, mine))
        size = _size([value])
        floor = jnp.sqrt(jnp.finfo(true.dtype).eps) * jnp.where(size > 0, whole / size, 0)
        scale = jnp.where(norm > floor, norm, jnp.maximum(own, floor))
        error = jnp.where(difference == 0, 0, difference / scale)
        error = jnp.where(jnp.isnan(error), jnp.inf, error)  # the rule alone is not finite
        errors.append(jnp.where(usable.any() | (usable.size == 0), error, jnp.nan))
    return jnp.stack(errors)


def _dot(a: Sequence[Any], b: Sequence[Any]) -> Any:
    return sum(jnp.real(x * y).sum() for x, y in zip(a, b, strict=True))


def _size(arrays: Sequence[Any]) -> Any:
    return jnp.sqrt(sum((jnp.abs(a) ** 2).sum() for a in arrays))
