"""A traced JAX program, evaluated with something else in the place of some of its equations.

Cuts are removed here or their values held; `gradaudit.backends.jax.rules` has rules observed and replaced.
Loops stay loops and branches stay branches: values cut inside a scan are recorded as its outputs and replayed as its
inputs. Equations keep the lines of the source, so that what is evaluated this way can be searched again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
from jax import lax
from jax.extend.source_info_util import user_context

from gradaudit.backends.jax.cuts import (
    CALLS,
    LOOPS_AND_BRANCHES,
    Chain,
    Function,
    Key,
    inside,
    is_cut,
    key,
    scan_sizes,
    site,
    supported,
    walk,
)
from gradaudit.sites import Cut

__all__ = ["Action", "Choice", "Run", "bind", "evaluated", "held", "observed", "places", "removed"]

#: Whether something else happens at an equation.
Choice: TypeAlias = Callable[[Any, Chain], bool]
#: What happens there: its results.
Action: TypeAlias = "Callable[[Run, Any, list[Any], Chain], list[Any]]"


def removed(function: Function, cuts: Collection[Cut], *arguments: Any) -> Function | None:
    """The same function, whose gradient flows through these cuts; None: one lies in what cannot be taken apart."""
    chosen = _written(cuts)
    if not all(site(e, chain).removable for e, chain in places(function, chosen, arguments)):
        return None
    return evaluated(function, chosen, lambda _run, _equation, given, _chain: given)


def held(function: Function, cuts: Collection[Cut], base: Any, *arguments: Any) -> Function | None:
    """The same function, in which the values of these cuts are what they are where the first argument is ``base``.

    They are computed anew at each call, in the precision of that call. Where another branch is taken than at the base
    point they are NaN. None: one lies in a loop of unknown length, or in what cannot be taken apart.
    """
    chosen = _written(cuts)
    chains = [chain for _, chain in places(function, chosen, (base, *arguments))]
    if not all(supported(chain) and all(e.primitive.name != "while" for e in chain) for chain in chains):
        return None

    def holding(parameters: Any, *arguments: Any) -> Any:
        closed = jax.make_jaxpr(function)(parameters, *arguments)
        there = jax.tree.map(lambda p, b: jax.numpy.asarray(b, p.dtype), parameters, base)
        record = Run(chosen, _recorded)
        record.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((there, *arguments)), ())
        replay = Run(chosen, _replayed, replays=True, values=[lax.stop_gradient(v) for v in record.values])
        return replay.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((parameters, *arguments)), ())[0]

    return holding


def evaluated(function: Function, chosen: Choice, act: Action) -> Function:
    """The same function, with something else at the chosen equations."""

    def run(*arguments: Any) -> Any:
        closed = jax.make_jaxpr(function)(*arguments)
        return Run(chosen, act).evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), ())[0]

    return run


def places(function: Function, chosen: Choice, arguments: Sequence[Any]) -> list[tuple[Any, Chain]]:
    """The chosen equations of a function, each with those that it lies in."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return [(e, chain) for e, chain, _ in walk(jaxpr) if chosen(e, chain)]


def observed(
    closed: Any, wanted: Mapping[Key, Sequence[int]], arguments: Sequence[Any]
) -> dict[Key, tuple[Any, list[list[Any]]]]:
    """How often these equations of a traced program run, and their inputs in the wanted executions, compiled."""
    index = {place: i for i, place in enumerate(wanted)}
    found = {key(e, chain): e for e, chain, _ in walk(closed.jaxpr) if key(e, chain) in index}

    def act(run: Run, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        place = key(equation, chain)
        count, kept = run.state[index[place]]
        kept = [
            [jax.numpy.where(count == k, new, old) for new, old in zip(given, before, strict=True)]
            for k, before in zip(wanted[place], kept, strict=True)
        ]
        run.state = [(count + 1, kept) if i == index[place] else other for i, other in enumerate(run.state)]
        return bind(equation, given)

    def program(arguments: Sequence[Any]) -> Any:
        start = [
            (jax.numpy.int32(0), [[_empty(v.aval) for v in found[place].invars] for _ in executions])
            for place, executions in wanted.items()
        ]
        run = Run(lambda e, chain: key(e, chain) in index, act, state=start)
        run.evaluate(closed.jaxpr, closed.consts, arguments, ())
        return run.state

    return dict(zip(wanted, jax.jit(program)(arguments), strict=True))


def _empty(aval: Any) -> Any:
    if jax.numpy.issubdtype(aval.dtype, jax.dtypes.extended):  # random keys
        return lax.empty(aval.shape, aval.dtype)
    return jax.numpy.zeros(aval.shape, aval.dtype)


def _written(cuts: Collection[Cut]) -> Choice:
    wanted = frozenset(cuts)
    return lambda equation, chain: is_cut(equation) and site(equation, chain) in wanted


def _recorded(run: Run, equation: Any, given: list[Any], _chain: Chain) -> list[Any]:
    results = bind(equation, given)
    run.values += results
    return results


def _replayed(run: Run, equation: Any, _given: list[Any], _chain: Chain) -> list[Any]:
    return run.take(len(equation.outvars))


@dataclass(slots=True)
class Run:
    """One evaluation of a traced program.

    Attributes:
        chosen: where something else happens.
        act: what happens there.
        replays: the action takes values, in the order of execution: as many as the equation has results.
        values: those to be taken, or those that the action adds; in loops one for all steps, in branches of each.
        state: what the action hands on from one execution to the next, also from step to step.
    """

    chosen: Choice
    act: Action
    replays: bool = False
    values: list[Any] = field(default_factory=list)
    state: Any = None

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], chain: Chain) -> list[Any]:
        """The results."""
        known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(variable: Any) -> Any:
            return variable.val if hasattr(variable, "val") else known[variable]

        for equation in jaxpr.eqns:
            given = [read(v) for v in equation.invars]
            with user_context(equation.source_info.traceback), equation.ctx.manager:
                results = self._equation(equation, given, chain)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def take(self, n: int) -> list[Any]:
        """The next values."""
        taken, self.values = self.values[:n], self.values[n:]
        return taken

    def _equation(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        if self.chosen(equation, chain):
            return self.act(self, equation, given, chain)
        if not any(self.chosen(e, c) for e, c in inside(equation, chain)):
            return bind(equation, given)
        name, within = equation.primitive.name, (*chain, equation)
        if name in CALLS:
            return self._call(equation, given, within)
        if name not in LOOPS_AND_BRANCHES:
            raise NotImplementedError(name)  # nobody asks for it: see `supported`
        run = {"scan": self._scan, "while": self._while, "cond": self._cond}[name]
        return run(equation, given, within)

    def _taken(self, places: Iterable[tuple[Any, Chain]]) -> list[Any]:
        """The values for the chosen ones among these equations."""
        if not self.replays:
            return []
        return self.take(sum(len(e.outvars) for e, chain in places if self.chosen(e, chain)))

    def _inner(self, values: Sequence[Any], state: Any) -> Run:
        return replace(self, values=list(values), state=state)

    def _call(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        sub = equation.params["jaxpr"]
        jaxpr, consts = (sub.jaxpr, sub.consts) if hasattr(sub, "consts") else (sub, ())
        if "policy" not in equation.params:
            return self.evaluate(jaxpr, consts, given, chain)
        mine = self._taken(inside(equation, chain[:-1]))

        def body(given: list[Any], mine: list[Any], state: Any) -> Any:
            inner = self._inner(mine, state)
            return inner.evaluate(jaxpr, consts, given, chain), inner.values, inner.state

        options = {key: equation.params[key] for key in ("prevent_cse", "policy")}
        results, seen, self.state = jax.checkpoint(body, **options)(given, mine, self.state)
        self.values += seen
        return list(results)

    def _scan(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        p, body = equation.params, equation.params["jaxpr"]
        n_consts, n_carry = scan_sizes(equation)
        consts, carry, xs = given[:n_consts], given[n_consts : n_consts + n_carry], given[n_consts + n_carry :]
        mine = self._taken(inside(equation, chain[:-1]))

        def step(carry: Any, x: Any) -> Any:
            inner = self._inner(x[1], carry[1])
            results = inner.evaluate(body.jaxpr, body.consts, [*consts, *carry[0], *x[0]], chain)
            return (results[:n_carry], inner.state), (results[n_carry:], inner.values)

        options = {key: p[key] for key in ("length", "reverse", "unroll")}
        (carry, self.state), (ys, seen) = lax.scan(step, (carry, self.state), (xs, mine), **options)
        self.values += seen
        return [*carry, *ys]

    def _while(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        p = equation.params
        test, body = p["cond_jaxpr"], p["body_jaxpr"]
        n_test, n_body = p["cond_nconsts"], p["body_nconsts"]
        for_test, for_body = given[:n_test], given[n_test : n_test + n_body]

        def tested(carry: Any) -> Any:
            return self._inner([], carry[1]).evaluate(test.jaxpr, test.consts, [*for_test, *carry[0]], chain)[0]

        def step(carry: Any) -> Any:
            inner = self._inner([], carry[1])
            return inner.evaluate(body.jaxpr, body.consts, [*for_body, *carry[0]], chain), inner.state

        results, self.state = lax.while_loop(tested, step, (given[n_test + n_body :], self.state))
        return list(results)

    def _cond(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        branches = equation.params["branches"]
        mine = [self._taken((e, c) for e, c, _ in walk(branch.jaxpr, chain)) for branch in branches]

        def run(i: int, *operands: Any) -> tuple[list[Any], list[Any], Any]:
            inner = self._inner(mine[i], self.state)
            results = inner.evaluate(branches[i].jaxpr, branches[i].consts, operands, chain)
            return results, inner.values, inner.state

        # in every branch a place for the values of all: NaN where they are not computed
        shapes = [jax.eval_shape(lambda *a, i=i: run(i, *a)[1], *given[1:]) for i in range(len(branches))]

        def padded(i: int, *operands: Any) -> Any:
            results, seen, state = run(i, *operands)
            return results, [seen if j == i else [_nan(s) for s in shapes[j]] for j in range(len(branches))], state

        every = [lambda *a, i=i: padded(i, *a) for i in range(len(branches))]
        results, seen, self.state = lax.switch(given[0], every, *given[1:])
        self.values += [value for branch in seen for value in branch]
        return list(results)


def _nan(shape: Any) -> Any:
    real = jax.numpy.issubdtype(shape.dtype, jax.numpy.inexact)
    return jax.numpy.full(shape.shape, jax.numpy.nan if real else 0, shape.dtype)


def bind(equation: Any, given: Sequence[Any]) -> list[Any]:
    """The results of an equation as it is."""
    found = equation.primitive.get_bind_params(equation.params)
    # before JAX 0.10: the functions of a rule, and parameters
    functions, params = found if isinstance(found, tuple) else ((), found)
    results = equation.primitive.bind(*functions, *given, **params)
    return list(results) if equation.primitive.multiple_results else [results]
