"""Where a JAX program cuts the gradient: its traced form is searched, and nothing is patched.

What `jax.make_jaxpr` traces carries the lines of the source. A cut is live where a value that depends on the parameters
goes in and a value that the loss depends on comes out. `gradaudit.backends.jax.replay` runs the program without cuts,
`gradaudit.backends.jax.rules` lists derivatives written by hand with the same search.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import CodeType
from typing import Any, TypeAlias

import jax
import numpy as np

import gradaudit
from gradaudit.sites import Cut

__all__ = [
    "CALLS",
    "LOOPS_AND_BRANCHES",
    "Chain",
    "Frame",
    "Function",
    "Key",
    "frames",
    "inside",
    "installed",
    "is_cut",
    "is_real",
    "jax_own",
    "key",
    "listed",
    "live",
    "scan_sizes",
    "site",
    "supported",
    "tainted",
    "user_frame",
    "walk",
]

Function: TypeAlias = Callable[..., Any]
#: The equations that an equation lies in, the outermost first.
Chain: TypeAlias = tuple[Any, ...]
#: An equation in its place: one traced function may be called in several.
Key: TypeAlias = tuple[int, ...]

#: Path, line, function, code and offset.
Frame: TypeAlias = tuple[str, int, str, CodeType, int]

#: Equations that run the one program inside them once.
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint")
LOOPS_AND_BRANCHES = ("scan", "while", "cond")
_STOP = "stop_gradient"
_CALLBACKS = ("pure_callback", "io_callback")
_LIBRARIES = ("site-packages", "dist-packages")
_OWN = str(Path(gradaudit.__file__).parent) + os.sep
_JAX = str(Path(jax.__file__).parent) + os.sep


def listed(function: Function, *arguments: Any) -> list[Cut]:
    """The live cuts between the first argument and the result, in the order of the program."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    found: dict[Cut, Cut] = {}
    for cut, times in _executions(jaxpr, live(jaxpr, len(jax.tree.leaves(arguments[0])))):
        before = found.get(cut, replace(cut, executions=0))
        both = before.removable and cut.removable
        found[cut] = replace(before, executions=before.executions + times, removable=both)
    return list(found.values())


def live(jaxpr: Any, n_parameters: int, *, through_cuts: bool = True) -> dict[Key, tuple[list[bool], list[bool]]]:
    """The equations between the first arguments and the result: which inputs depend on those, which results matter.

    Args:
        jaxpr: the program.
        n_parameters: how many arguments are parameters.
        through_cuts: follow values; otherwise follow the gradient, which a cut stops.
    """
    given, wanted = _Search(through_cuts), _Search(through_cuts)
    _taint(jaxpr, [i < n_parameters for i in range(len(jaxpr.invars))], (), given)
    _need(jaxpr, [True] * len(jaxpr.outvars), (), wanted)
    return {place: (given.found[place], wanted.found[place]) for place in given.found.keys() & wanted.found}


def tainted(equation: Any, given: list[bool]) -> list[bool]:
    """Through which results of an equation the gradient of these inputs passes."""
    if is_cut(equation):
        return [False] * len(equation.outvars)
    return _taint_inside(equation, given, (equation,), _Search(through_cuts=False))


def walk(jaxpr: Any, chain: Chain = (), times: int = 1) -> Iterator[tuple[Any, Chain, int]]:
    """Every equation, with those that it lies in, and how often it runs where loops of unknown length run once."""
    for equation in jaxpr.eqns:
        yield equation, chain, times
        n = int(equation.params["length"]) if equation.primitive.name == "scan" else 1
        for sub in _subs(equation):
            yield from walk(sub, (*chain, equation), times * n)


def scan_sizes(equation: Any) -> tuple[int, int]:
    """How many constants a scan has, which are its first arguments, and carried values, which follow."""
    p = equation.params
    if "ft_in" not in p:  # before JAX 0.11
        return p["num_consts"], p["num_carry"]
    consts, carry, _ = p["ft_in"].unpack()
    return len(consts), len(carry)


def inside(equation: Any, chain: Chain) -> Iterator[tuple[Any, Chain]]:
    """Every equation inside this one, with those that it lies in."""
    for sub in _subs(equation):
        yield from ((inner, place) for inner, place, _ in walk(sub, (*chain, equation)))


def is_real(variable: Any) -> bool:
    """Whether a gradient can pass: a floating-point (bfloat16 is one to JAX, not to NumPy) or complex variable."""
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and bool(jax.numpy.issubdtype(dtype, np.inexact))


def is_cut(equation: Any) -> bool:
    """Whether it passes real values on without their gradient."""
    name = equation.primitive.name
    return (name == _STOP or name in _CALLBACKS) and any(map(is_real, equation.outvars))


def supported(chain: Chain) -> bool:
    """Whether these equations can be evaluated piece by piece."""
    return all(e.primitive.name in (*CALLS, *LOOPS_AND_BRANCHES) for e in chain)


def site(equation: Any, chain: Chain) -> Cut:
    """Where it is written: the innermost frame of the user; a traced function that was cached has its caller's only."""
    name = equation.primitive.name
    kind = _STOP if name == _STOP else "callback"
    library = _in_library(equation.source_info.traceback)
    removable = supported(chain) and name == _STOP
    frame = user_frame(equation, chain)
    if frame is None:
        return Cut(kind=kind, path="", line=0, library=True, removable=removable)
    path, line, function, code, offset = frame
    column = _column(code, offset)
    return Cut(kind=kind, path=path, line=line, column=column, function=function, library=library, removable=removable)


def user_frame(equation: Any, chain: Chain) -> Frame | None:
    """The innermost frame of the user."""
    for enclosing in (equation, *reversed(chain)):
        frame = next((f for f in frames(enclosing.source_info.traceback) if not installed(f[0])), None)
        if frame is not None:
            return frame
    return None


def installed(path: str) -> bool:
    """Whether a source file belongs to a library."""
    return path.startswith((_OWN, _JAX)) or any(part in path for part in _LIBRARIES)


def jax_own(path: str) -> bool:
    """Whether a source file belongs to JAX."""
    return path.startswith(_JAX)


def frames(traceback: Any) -> Iterator[Frame]:
    """Path, line, function, code and offset of each frame, the innermost first."""
    if traceback is None:
        return
    for frame, code, offset in zip(traceback.frames, *traceback.raw_frames(), strict=True):
        yield frame.file_name, frame.line_num, frame.function_name, code, offset


@cache
def _column(code: CodeType, offset: int) -> int:
    positions = next(islice(code.co_positions(), max(offset, 0) // 2, None), None)
    return (positions[2] if positions else None) or 0


def _in_library(traceback: Any) -> bool:
    """Whether the function that calls ``stop_gradient`` belongs to JAX or another library (softmax, for example)."""
    frames = list(traceback.frames) if traceback else []
    # the outermost: under vmap the batching rule calls it once more
    own = [i for i, f in enumerate(frames) if f.function_name == _STOP and f.file_name.startswith(_JAX)]
    callers = [f for f in frames[own[-1] + 1 :] if "traceback_util" not in f.file_name] if own else []
    return bool(callers) and any(part in callers[0].file_name for part in (_JAX, *_LIBRARIES))


def _subs(equation: Any) -> Iterator[Any]:
    """The programs inside an equation; those of custom rules are opaque: their own rule is what counts."""
    if equation.primitive.name.startswith(("custom_jvp", "custom_vjp")):
        return
    yield from _programs(tuple(equation.params.values()))


def _programs(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _programs(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr") and hasattr(value.jaxpr, "eqns"):
        yield value.jaxpr


def key(equation: Any, chain: Chain) -> Key:
    """An equation in its place, in one traced program."""
    return tuple(id(e) for e in (*chain, equation))


def _executions(jaxpr: Any, found: Collection[Key]) -> Iterator[tuple[Cut, int]]:
    last = None
    for equation, chain, times in walk(jaxpr):
        alive = is_cut(equation) and key(equation, chain) in found
        if equation.primitive.name != _STOP:
            last = None
            if alive:
                yield site(equation, chain), times
            continue
        here = (site(equation, chain), chain) if alive else last
        # one call on a tree is one equation for each leaf, one after the other
        if here is not None and here != last:
            yield here[0], times
        last = here


@dataclass(slots=True)
class _Search:
    """Equations found on the way, each with which of its inputs depend, or which of its results matter."""

    through_cuts: bool
    found: dict[Key, list[bool]] = field(default_factory=dict)


def _taint(jaxpr: Any, tainted: Sequence[bool], chain: Chain, search: _Search) -> list[bool]:
    """Which results depend on tainted arguments; equations that do are found."""
    known = {v for v, t in zip(jaxpr.invars, tainted, strict=True) if t}
    for equation in jaxpr.eqns:
        given = [not hasattr(v, "val") and v in known for v in equation.invars]
        if any(given):
            search.found[key(equation, chain)] = given
        if is_cut(equation) and not search.through_cuts:
            continue
        results = _taint_inside(equation, given, (*chain, equation), search)
        known |= {v for v, t in zip(equation.outvars, results, strict=True) if t and is_real(v)}
    return [not hasattr(v, "val") and v in known for v in jaxpr.outvars]


def _taint_inside(equation: Any, given: list[bool], inside: Chain, search: _Search) -> list[bool]:
    name, subs = equation.primitive.name, list(_subs(equation))
    if name in ("scan", "while"):
        skip, n_consts, n_carry, body = _loop(equation)
        first = skip + n_consts
        while True:  # until what one step hands to the next no longer changes
            results = _taint(body, given[skip:], inside, search)
            after = [t or (first <= i < first + n_carry and results[i - first]) for i, t in enumerate(given)]
            if after == given:
                return [*given[first : first + n_carry], *results[n_carry:]]
            given = after
    if name == "cond":
        branches = [_taint(sub, given[1:], inside, search) for sub in subs]
        return [any(of_one) for of_one in zip(*branches, strict=True)]
    if _is_call(equation, subs):
        return _taint(subs[0], given, inside, search)
    for sub in subs:  # opaque: whatever enters may reach anything
        _taint(sub, [any(given)] * len(sub.invars), inside, search)
    return [any(given)] * len(equation.outvars)


def _need(jaxpr: Any, wanted: Sequence[bool], chain: Chain, search: _Search) -> list[bool]:
    """Which arguments the wanted results depend on, through real values; equations in between are found."""
    known = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and not hasattr(v, "val")}
    for equation in reversed(jaxpr.eqns):
        # what is written to a reference may be read anywhere
        writes = any(hasattr(v.aval, "inner_aval") for v in equation.invars)
        results = [writes or v in known for v in equation.outvars]
        if not (writes or any(results)):
            continue
        search.found[key(equation, chain)] = results
        if is_cut(equation) and not search.through_cuts:
            continue
        given = _need_inside(equation, results, (*chain, equation), search)
        known |= {v for v, n in zip(equation.invars, given, strict=True) if n and not hasattr(v, "val") and is_real(v)}
    return [v in known for v in jaxpr.invars]


def _need_inside(equation: Any, wanted: list[bool], inside: Chain, search: _Search) -> list[bool]:
    name, subs = equation.primitive.name, list(_subs(equation))
    if name in ("scan", "while"):
        n_test, n_consts, n_carry, body = _loop(equation)
        while True:  # until what one step asks of the one before no longer changes
            given = _need(body, wanted, inside, search)
            carried = [w or g for w, g in zip(wanted, given[n_consts : n_consts + n_carry], strict=False)]
            if [*carried, *wanted[n_carry:]] == wanted:
                return [*[False] * n_test, *given[:n_consts], *carried, *given[n_consts + n_carry :]]
            wanted = [*carried, *wanted[n_carry:]]
    if name == "cond":
        branches = [_need(sub, wanted, inside, search) for sub in subs]
        return [False, *(any(of_one) for of_one in zip(*branches, strict=True))]
    if _is_call(equation, subs):
        return _need(subs[0], wanted, inside, search)
    for sub in subs:
        _need(sub, [True] * len(sub.outvars), inside, search)
    return [True] * len(equation.invars)


def _loop(equation: Any) -> tuple[int, int, int, Any]:
    """Arguments of its test alone, constants of its body, carried values, and the body."""
    p = equation.params
    if equation.primitive.name == "scan":
        return 0, *scan_sizes(equation), p["jaxpr"].jaxpr
    return p["cond_nconsts"], p["body_nconsts"], len(equation.outvars), p["body_jaxpr"].jaxpr


def _is_call(equation: Any, subs: Sequence[Any]) -> bool:
    return equation.primitive.name in CALLS and len(subs) == 1 and len(subs[0].invars) == len(equation.invars)
