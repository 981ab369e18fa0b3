"""Where a JAX program cuts the gradient: its traced form is listed, and evaluated with cuts removed or held.

Nothing is patched. The program is traced (`jax.make_jaxpr`), and what is traced carries the lines of the source; an
interpreter then runs it with some of its equations replaced. Loops stay loops: values cut inside a scan are recorded
as its outputs and replayed as its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import lax

import gradaudit
from gradaudit.sites import Cut

__all__ = ["NotHeld", "held", "listed", "removed"]

Function: TypeAlias = Callable[..., Any]
#: The equations that an equation lies in, the outermost first.
Chain: TypeAlias = tuple[Any, ...]

_CUT = "stop_gradient"
_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint")
_LIBRARIES = ("site-packages", "dist-packages")
_OWN = str(Path(gradaudit.__file__).parent)
_JAX = str(Path(jax.__file__).parent)


class NotHeld(Exception):  # noqa: N818  # not an error: the experiment is not possible
    """A value is cut where it cannot be recorded: in a branch, or in a loop of unknown length."""


def listed(function: Function, *arguments: Any) -> list[Cut]:
    """The cuts between the first argument and the result, in the order of the program."""
    closed = jax.make_jaxpr(function)(*arguments)
    n_parameters = len(jax.tree.leaves(arguments[0]))
    tainted = [i < n_parameters for i in range(len(closed.jaxpr.invars))]
    found: dict[Cut, int] = {}
    _taint(closed.jaxpr, tainted, (), 1, found)
    return [replace(cut, executions=n) for cut, n in found.items()]


def removed(function: Function, cuts: Collection[Cut]) -> Function:
    """The same function, whose gradient flows through these cuts."""

    def through(*arguments: Any) -> Any:
        closed = jax.make_jaxpr(function)(*arguments)
        run = _Run(frozenset(cuts), "remove")
        return run.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), ())[0]

    return through


def held(function: Function, cuts: Collection[Cut], base: Any) -> Function:
    """The same function, in which the values of these cuts are what they are where the first argument is ``base``.

    They are computed anew at each call, in the precision of that call.

    Raises:
        NotHeld: when it is called, if a cut lies in a branch or in a loop of unknown length.
    """

    def holding(parameters: Any, *arguments: Any) -> Any:
        closed = jax.make_jaxpr(function)(parameters, *arguments)
        there = jax.tree.map(lambda p, b: jax.numpy.asarray(b, p.dtype), parameters, base)
        record = _Run(frozenset(cuts), "record")
        record.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((there, *arguments)), ())
        replay = _Run(frozenset(cuts), "replay", [lax.stop_gradient(v) for v in record.values])
        return replay.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves((parameters, *arguments)), ())[0]

    return holding


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
            results = self._equation(equation, given, chain)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        if _is_cut(equation) and _site(equation, chain) in self.cuts:
            return self._cut(given)
        inside = (*chain, equation)
        if not any(_site(e, c) in self.cuts for e, c in _cuts_below(equation, chain)):
            results = equation.primitive.bind(*given, **_bind_parameters(equation))
            return list(results) if equation.primitive.multiple_results else [results]
        name = equation.primitive.name
        if name in _CALLS:
            sub = equation.params["jaxpr"]
            jaxpr, consts = (sub.jaxpr, sub.consts) if hasattr(sub, "consts") else (sub, ())
            return self.evaluate(jaxpr, consts, given, inside)
        if name == "scan":
            return self._scan(equation, given, inside)
        if self.mode != "remove" or name not in ("while", "cond"):
            raise NotHeld(name)
        return self._while(equation, given, inside) if name == "while" else self._cond(equation, given, inside)

    def _cut(self, given: list[Any]) -> list[Any]:
        if self.mode == "replay":
            return [self.values.pop(0) for _ in given]
        if self.mode == "record":
            self.values += given
        return given

    def _scan(self, equation: Any, given: list[Any], chain: Chain) -> list[Any]:
        p, body = equation.params, equation.params["jaxpr"]
        n_consts, n_carry = p["num_consts"], p["num_carry"]
        consts, carry, xs = given[:n_consts], given[n_consts : n_consts + n_carry], given[n_consts + n_carry :]
        n_inside = sum(_site(e, c) in self.cuts for e, c in _cuts_below(equation, chain[:-1]))
        mine = [self.values.pop(0) for _ in range(n_inside)] if self.mode == "replay" else []

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
        branches = [
            lambda *a, branch=branch: self.evaluate(branch.jaxpr, branch.consts, a, chain)
            for branch in equation.params["branches"]
        ]
        return list(lax.switch(given[0], branches, *given[1:]))


def _bind_parameters(equation: Any) -> dict[str, Any]:
    found = equation.primitive.get_bind_params(equation.params)
    # before JAX 0.10: (functions, parameters)
    return dict(found[1] if isinstance(found, tuple) else found)


def _is_cut(equation: Any) -> bool:
    return equation.primitive.name == _CUT and np.issubdtype(equation.invars[0].aval.dtype, np.inexact)


def _subs(equation: Any) -> Iterator[Any]:
    """The programs inside an equation; those of custom rules are opaque: their own rule is what counts."""
    if equation.primitive.name.startswith("custom_"):
        return
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
                yield item.jaxpr


def _cuts_below(equation: Any, chain: Chain) -> Iterator[tuple[Any, Chain]]:
    inside = (*chain, equation)
    for sub in _subs(equation):
        for inner in sub.eqns:
            if _is_cut(inner):
                yield inner, inside
            yield from _cuts_below(inner, inside)


def _taint(jaxpr: Any, tainted: Sequence[bool], chain: Chain, times: int, found: dict[Cut, int]) -> list[bool]:
    """Which results depend on tainted arguments; cuts of tainted values are added to ``found``."""
    known = {v for v, t in zip(jaxpr.invars, tainted, strict=True) if t}
    for equation in jaxpr.eqns:
        given = [not hasattr(v, "val") and v in known for v in equation.invars]
        if _is_cut(equation) and any(given):
            cut = _site(equation, chain)
            found[cut] = found.get(cut, 0) + times
        results = _taint_inside(equation, given, chain, times, found)
        known |= {v for v, t in zip(equation.outvars, results, strict=True) if t}
    return [not hasattr(v, "val") and v in known for v in jaxpr.outvars]


def _taint_inside(equation: Any, given: list[bool], chain: Chain, times: int, found: dict[Cut, int]) -> list[bool]:
    inside, name, p = (*chain, equation), equation.primitive.name, equation.params
    subs = list(_subs(equation))
    if name == "scan":
        first, n_carry = p["num_consts"], p["num_carry"]
        for _ in range(n_carry + 1):  # until what one step hands to the next no longer changes
            results = _taint(subs[0], given, inside, times, {})
            given = [t or (first <= i < first + n_carry and results[i - first]) for i, t in enumerate(given)]
        return _taint(subs[0], given, inside, times * int(p["length"]), found)
    if name in _CALLS and len(subs) == 1 and len(subs[0].invars) == len(given):
        return _taint(subs[0], given, inside, times, found)
    for sub in subs:
        # branches and dynamic loops: whatever enters may reach anything
        _taint(sub, [any(given)] * len(sub.invars), inside, times, found)
    return [any(given)] * len(equation.outvars)


def _site(equation: Any, chain: Chain) -> Cut:
    """Where it is written: the innermost frame of the user; a traced function that was cached has its caller's only."""
    library = False
    for enclosing in (equation, *reversed(chain)):
        traceback = enclosing.source_info.traceback
        frames = [f for f in traceback.frames if not f.file_name.startswith((_OWN, _JAX))] if traceback else []
        if enclosing is equation:
            library = _in_jax(traceback)
        frame = next((f for f in frames if not any(part in f.file_name for part in _LIBRARIES)), None)
        if frame is not None:
            return Cut(
                kind=_CUT,
                path=frame.file_name,
                line=frame.line_num,
                function=frame.function_name,
                library=library,
            )
    return Cut(kind=_CUT, path="", line=0, library=True)


def _in_jax(traceback: Any) -> bool:
    """Whether the function that calls ``stop_gradient`` belongs to JAX or another library (softmax, for example)."""
    frames = list(traceback.frames) if traceback else []
    own = next((i for i, f in enumerate(frames) if f.function_name == _CUT and f.file_name.startswith(_JAX)), None)
    callers = [] if own is None else [f for f in frames[own + 1 :] if "traceback_util" not in f.file_name]
    return bool(callers) and any(part in callers[0].file_name for part in (_JAX, *_LIBRARIES))
