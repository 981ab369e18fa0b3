"""A traced JAX program, evaluated with some of its cuts removed or with their values held.

Loops stay loops and branches stay branches: values cut inside a scan are recorded as its outputs and replayed as its
inputs. Equations keep the lines of the source, so that what is evaluated this way can be searched for cuts again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import lax
from jax.extend.source_info_util import user_context

from gradaudit.backends.jax.cuts import CALLS, LOOPS_AND_BRANCHES, Chain, Function, cuts_below, is_cut, site
from gradaudit.sites import Cut

__all__ = ["held", "removed"]


def removed(function: Function, cuts: Collection[Cut], *arguments: Any) -> Function | None:
    """The same function, whose gradient flows through these cuts; None: one lies in what cannot be taken apart."""
    if not all(cut.removable for cut in _chosen(function, cuts, arguments)):
        return None

    def through(*arguments: Any) -> Any:
        closed = jax.make_jaxpr(function)(*arguments)
        run = _Run(frozenset(cuts), "remove")
        return run.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), ())[0]

    return through


def held(function: Function, cuts: Collection[Cut], base: Any, *arguments: Any) -> Function | None:
    """The same function, in which the values of these cuts are what they are where the first argument is ``base``.

    They are computed anew at each call, in the precision of that call. Where another branch is taken than at the base
    point they are NaN. None: one lies in a loop of unknown length, or in what cannot be taken apart.
    """
    within = (*CALLS, "scan", "cond")
    if not _all_within(function, cuts, (base, *arguments), within):
        return None

    def holding(parameters: Any, *arguments: Any) -> Any:
        closed = jax.make_jaxpr(function)(parameters, *arguments)
        there = jax.tree.map(lambda p, b: jax.numpy.asarray(b, p.dtype), parameters, base)
        record = _Run(frozenset(cuts), "record")
        record.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((there, *arguments)), ())
        replay = _Run(frozenset(cuts), "replay", [lax.stop_gradient(v) for v in record.values])
        return replay.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((parameters, *arguments)), ())[0]

    return holding


def _places(function: Function, cuts: Collection[Cut], arguments: Sequence[Any]) -> list[tuple[Any, Chain]]:
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    every = [(e, ()) for e in jaxpr.eqns if is_cut(e)] + [pair for e in jaxpr.eqns for pair in cuts_below(e, ())]
    return [(e, chain) for e, chain in every if site(e, chain) in cuts]


def _chosen(function: Function, cuts: Collection[Cut], arguments: Sequence[Any]) -> list[Cut]:
    return [site(e, chain) for e, chain in _places(function, cuts, arguments)]


def _all_within(function: Function, cuts: Collection[Cut], arguments: Sequence[Any], names: Sequence[str]) -> bool:
    places = _places(function, cuts, arguments)
    return all(e.primitive.name in names for _, chain in places for e in chain)


@dataclass(slots=True)
class _Run:
    """One evaluation of a traced program, in which some cuts are removed, recorded or replayed."""

    cuts: frozenset[Cut]
    mode: str
    values: list[Any] = field(default_factory=list)

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], chain: Chain) -> list[Any]:
        """The results; in mode "record" values are added in the order of execution, in "replay" taken in that order."""
        known: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(variable: Any) -> Any:
            return variable.val if hasattr(variable, "val") else known[variable]

        for equation in jaxpr.eqns:
            given = [read(v) for v in equation.invars]
            with user_context(equation.source_info.traceback), equation.ctx.manager:
                results = self._equation(equation, given, chain)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        if is_cut(equation) and site(equation, chain) in self.cuts:
            return self._cut(equation, given)
        if not self._width(equation, chain):
            return _bind(equation, given)
        name, inside = equation.primitive.name, (*chain, equation)
        if name in CALLS:
            return self._call(equation, given, inside)
        if name not in LOOPS_AND_BRANCHES or (name == "while" and self.mode != "remove"):
            raise NotImplementedError(name)  # `removed` and `held` answer None before it comes to this
        run = {"scan": self._scan, "while": self._while, "cond": self._cond}[name]
        return run(equation, given, inside)

    def _width(self, equation: Any, chain: Chain) -> int:
        """How many values are recorded inside it: in a loop one for all steps, in branches those of each."""
        return sum(len(e.outvars) for e, c in cuts_below(equation, chain) if site(e, c) in self.cuts)

    def _cut(self, equation: Any, given: list[Any]) -> list[Any]:
        if self.mode == "replay":
            return self._take(len(equation.outvars))
        if self.mode == "remove":
            return given
        results = _bind(equation, given)
        self.values += results
        return results

    def _take(self, n: int) -> list[Any]:
        taken, self.values = self.values[:n], self.values[n:]
        return taken

    def _call(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        sub = equation.params["jaxpr"]
        jaxpr, consts = (sub.jaxpr, sub.consts) if hasattr(sub, "consts") else (sub, ())
        if "policy" not in equation.params:
            return self.evaluate(jaxpr, consts, given, chain)
        mine = self._take(self._width(equation, chain[:-1])) if self.mode == "replay" else []

        def body(given: list[Any], mine: list[Any]) -> Any:
            inner = _Run(self.cuts, self.mode, list(mine))
            return inner.evaluate(jaxpr, consts, given, chain), inner.values

        options = {key: equation.params[key] for key in ("prevent_cse", "policy")}
        results, seen = jax.checkpoint(body, **options)(given, mine)
        self.values += seen if self.mode == "record" else []
        return list(results)

    def _scan(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        p, body = equation.params, equation.params["jaxpr"]
        n_consts, n_carry = p["num_consts"], p["num_carry"]
        consts, carry, xs = given[:n_consts], given[n_consts : n_consts + n_carry], given[n_consts + n_carry :]
        mine = self._take(self._width(equation, chain[:-1])) if self.mode == "replay" else []

        def step(carry: Any, x: Any) -> Any:
            inner = _Run(self.cuts, self.mode, list(x[1]))
            results = inner.evaluate(body.jaxpr, body.consts, [*consts, *carry, *x[0]], chain)
            return results[:n_carry], (results[n_carry:], inner.values if self.mode == "record" else [])

        options = {key: p[key] for key in ("length", "reverse", "unroll")}
        carry, (ys, seen) = lax.scan(step, carry, (xs, mine), **options)
        self.values += seen
        return [*carry, *ys]

    def _while(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        p = equation.params
        test, body = p["cond_jaxpr"], p["body_jaxpr"]
        n_test, n_body = p["cond_nconsts"], p["body_nconsts"]
        for_test, for_body = given[:n_test], given[n_test : n_test + n_body]
        return list(
            lax.while_loop(
                lambda carry: self.evaluate(test.jaxpr, test.consts, [*for_test, *carry], chain)[0],
                lambda carry: self.evaluate(body.jaxpr, body.consts, [*for_body, *carry], chain),
                given[n_test + n_body :],
            )
        )

    def _cond(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        branches = equation.params["branches"]
        widths = [self._branch_width(branch.jaxpr, chain) for branch in branches]
        mine = [self._take(n) if self.mode == "replay" else [] for n in widths]

        def run(i: int, *operands: Any) -> tuple[list[Any], list[Any]]:
            inner = _Run(self.cuts, self.mode, list(mine[i]))
            results = inner.evaluate(branches[i].jaxpr, branches[i].consts, operands, chain)
            return results, inner.values if self.mode == "record" else []

        # in every branch a place for the values of all: NaN where they are not computed
        shapes = [jax.eval_shape(lambda *a, i=i: run(i, *a)[1], *given[1:]) for i in range(len(branches))]

        def padded(i: int, *operands: Any) -> Any:
            results, seen = run(i, *operands)
            return results, [seen if j == i else [_nan(s) for s in shapes[j]] for j in range(len(branches))]

        results, seen = lax.switch(given[0], [lambda *a, i=i: padded(i, *a) for i in range(len(branches))], *given[1:])
        self.values += [value for branch in seen for value in branch]
        return list(results)

    def _branch_width(self, jaxpr: Any, chain: Chain) -> int:
        own = sum(len(e.outvars) for e in jaxpr.eqns if is_cut(e) and site(e, chain) in self.cuts)
        return own + sum(self._width(e, chain) for e in jaxpr.eqns)


def _nan(shape: Any) -> Any:
    real = jax.numpy.issubdtype(shape.dtype, jax.numpy.inexact)
    return jax.numpy.full(shape.shape, jax.numpy.nan if real else 0, shape.dtype)


def _bind(equation: Any, given: Sequence[Any]) -> list[Any]:
    found = equation.primitive.get_bind_params(equation.params)
    # before JAX 0.10: (functions, parameters)
    results = equation.primitive.bind(*given, **(found[1] if isinstance(found, tuple) else found))
    return list(results) if equation.primitive.multiple_results else [results]
