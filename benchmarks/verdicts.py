"""Verdicts on correct but hard gradients and on wrong ones, over the four backends; other checkers on the same cases.

    python benchmarks/verdicts.py [--seeds N] [--backends numpy torch ...] [--rivals] [--false-alarms N]

A case is a `models.Recipe` on a backend in one of three kinds: float64, float32 with its float64 twin, float32 alone.
A seed draws parameters, data and the probing directions anew. Faults are planted in the gradient that the model hands
over (``own``: a twin stays right) or inside the framework's function (``inside``: a twin has them too).
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for _library in ("OMP", "OPENBLAS", "MKL"):  # the models are small: more threads than one wait for one another
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import numpy as np
from models import RECIPES, Ops, Recipe, ops

import gradaudit
from gradaudit.backends import registry
from gradaudit.recurrent import RecurrentSpec, none, random_sequences, tail

KINDS = ("float64", "float32 with twin", "float32 alone")
SIZES = {"float64": (1e-1, 1e-2, 1e-3, 1e-4), "float32 with twin": (1e-1, 1e-2, 1e-3, 1e-4)}
SIZES["float32 alone"] = (1e-1, 1e-2, 1e-3)
#: How many models each fault is planted in, by kind, with each seed.
_MODELS_A_FAULT = 4
#: Gross faults that change a tensor by less than this, relative, are none (rolling a constant).
_GROSS = 0.1
#: A tensor whose gradient is smaller beside the largest, each times the size of its parameters, has none.
_NOTHING = 1e-9
_LARGE_SEEDS = 1
#: Other checkers are asked about models up to this size, of the wrong ones about one in so many: they are slow.
_RIVAL_MOST, _RIVAL_EVERY = 300, 4


@dataclass(frozen=True)
class Case:
    """A loss on a backend.

    Attributes:
        recipe: a name in `models.RECIPES`, or that of one of gradaudit's own layers.
        kind: one of `KINDS`.
    """

    recipe: str
    backend: str
    kind: str

    @property
    def dtype(self) -> str:
        return self.kind.split()[0]

    @property
    def name(self) -> str:
        return f"{self.recipe} | {self.backend} | {self.kind}"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a gradient.

    Attributes:
        name: of the kind.
        size: relative, None for gross faults.
        where: ``own``, ``inside``, or how else it is planted.
    """

    name: str
    size: float | None = None
    where: str = "own"

    def __str__(self) -> str:
        return f"{self.name}{f' {self.size:g}' if self.size else ''}, {self.where}"


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A gradient's errors: what is added to each tensor, or what the function itself does.

    Attributes:
        added: by tensor.
        missing: tensors whose gradient is None.
        detached: tensors that the function detaches.
        options: of `models.ops`.
        wrong: the tensors that are wrong; empty: unknown.
    """

    added: dict[str, np.ndarray] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    detached: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict)
    wrong: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One audit, or one rival's answer (then ``by`` is its name)."""

    case: Case
    fault: Fault | None
    seed: int
    verdict: str
    by: str = "gradaudit"
    resolution: float = math.nan
    codes: str = ""
    evaluations: int = 0
    gradients: int = 0
    seconds: float = 0.0
    source: str = ""
    note: str = ""
    blamed: tuple[str, ...] = ()
    wrong: frozenset[str] = frozenset()

    @property
    def innocent(self) -> set[str]:
        """Right tensors that were condemned."""
        return set(self.blamed) - self.wrong if self.fault is None or self.wrong else set()


# ---------------------------------------------------------------- models


class Changed:
    """A model whose own gradient is changed, or that lacks a capability; the rest is the model's."""

    def __init__(self, inner: Any, change: Callable[[dict], dict] | None = None, without: Sequence[str] = ()) -> None:
        self._inner, self._change = inner, change
        kept = ("parameters", "loss", "along", "jvp", "twin", "terms", "frozen", "preserved", "environment", "sizes")
        for name in (*kept, "truncation", "with_truncation"):
            if hasattr(inner, name) and name not in without:
                setattr(self, name, getattr(inner, name))

    @property
    def point_bytes(self) -> int:
        return getattr(self._inner, "point_bytes", 0)

    def value_and_grad(self, parameters):
        loss, gradients = self._inner.value_and_grad(parameters)
        return loss, gradients if self._change is None else self._change(dict(gradients))


def planted_loss(recipe: Recipe, o: Ops, detached: frozenset[str]) -> Callable[..., Any]:
    """The loss as a function of parameters, data and errors; each error's term is zero, its gradient the error."""

    def function(p, data, added):
        seen = {n: o.stop(x) if n in detached else x for n, x in p.items()}
        loss = recipe.loss(o, seen, data)
        for name, error in added.items():
            loss = loss + o.sum(o.array(error, p[name]) * (p[name] - o.stop(p[name])))
        return loss

    return function


@cache
def _jax_programs(recipe: str, detached: frozenset[str], options: tuple) -> Any:
    from gradaudit.backends.jax.model import Programs

    return Programs(planted_loss(RECIPES[recipe], ops("jax", **dict(options)), detached))


def framework_function(case: Case, data: dict, planted: Planted) -> Callable[[dict], Any]:
    """The loss of named tensors of the case's framework; PyTorch's for NumPy."""
    backend = "torch" if case.backend == "numpy" else case.backend
    function = planted_loss(RECIPES[case.recipe], ops(backend, **planted.options), planted.detached)
    return lambda p: function(p, data, planted.added)


def build(case: Case, parameters: dict, data: dict, planted: Planted) -> Any:
    """The model of a case, errors inside."""
    recipe = RECIPES[case.recipe]
    cast = {n: p.astype(case.dtype) for n, p in parameters.items()}
    function = framework_function(case, data, planted)
    if case.backend == "jax":
        from gradaudit.backends.jax.model import JaxModel

        zeros = {n: planted.added.get(n, np.zeros(p.shape)) for n, p in parameters.items()}
        programs = _jax_programs(case.recipe, planted.detached, tuple(planted.options.items()))
        model = JaxModel(programs, cast, arguments=(data, zeros))
    elif case.backend == "numpy":
        from gradaudit.backends.numpy import NumpyModel
        from gradaudit.backends.torch.model import TorchModel

        differentiated = TorchModel(function, cast, n_threads=1)
        loss = lambda p: recipe.loss(ops("numpy"), p, data)  # noqa: E731
        model = NumpyModel(loss, cast, gradient=lambda p: differentiated.value_and_grad(p)[1])
    else:
        options = {"n_threads": 1} if case.backend == "torch" else {}
        model = registry.get(case.backend).function_model(function, cast, **options)
    return Changed(model, without=["twin"]) if case.kind == "float32 alone" else model


# ---------------------------------------------------------------- faults


def _scaled(g, d, _):
    return (1 + d) * g


def _noisy(g, d, rng):
    noise = rng.standard_normal(g.shape)
    return g + d * np.linalg.norm(g) / np.linalg.norm(noise) * noise


def _entry(g, d, rng):
    wrong = g.copy()
    wrong.flat[rng.integers(g.size)] += d * np.sqrt(np.mean(g * g))
    return wrong


def _transposed(g, *_):
    return g.T if g.ndim == 2 and g.shape[0] == g.shape[1] else g


_CHANGES: dict[str, Callable] = {
    "scale 1+d": _scaled,
    "noise d*norm": _noisy,
    "one entry d*rms": _entry,
    "sign": lambda g, *_: -g,
    "zero": lambda g, *_: 0 * g,
    "roll": lambda g, *_: np.roll(g.ravel(), 1).reshape(g.shape),
    "transpose": _transposed,
    "sum for mean": lambda g, *_: 16 * g,
}
_SIZED = ("scale 1+d", "noise d*norm", "one entry d*rms")


def faults(kind: str) -> list[Fault]:
    """All that is planted in models of a kind."""
    wheres = ("own", "inside") if kind == "float32 with twin" else ("own",)
    sized = [Fault(name, d, where) for name in _SIZED for d in SIZES[kind] for where in wheres]
    gross = [Fault(name, None, where) for name in _CHANGES if name not in _SIZED for where in wheres]
    inside = [Fault("partial detach", d, "inside") for d in SIZES[kind]]
    inside += [Fault("custom backward", d, "function") for d in SIZES[kind]]
    others = [Fault("None"), Fault("swapped tensors"), Fault("all tensors x 16"), Fault("gradient where there is none")]
    return [*sized, *gross, *inside, *others, Fault("detach", None, "function"), Fault("truncated", None, "function")]


def plant(fault: Fault, recipe: Recipe, gradients: dict[str, np.ndarray], parameters: dict, rng: Any) -> Planted | None:
    """The fault in one random tensor of this model; None where it is none."""
    if fault.name == "custom backward":
        return Planted(options={"factor": 1 + fault.size}) if recipe.tanh else None
    if fault.name == "truncated":
        return Planted(options={"cut": recipe.steps - 3}) if recipe.steps else None
    sizes = {n: np.linalg.norm(g) * (np.sqrt(np.mean(parameters[n] ** 2)) or 1) for n, g in gradients.items()}
    # rounding is no gradient to get wrong: the bias before a batch norm
    moving = {n: np.linalg.norm(gradients[n]) if s > _NOTHING * max(sizes.values()) else 0.0 for n, s in sizes.items()}
    if fault.name == "gradient where there is none":
        idle = [n for n, norm in moving.items() if norm == 0]
        if not idle:
            return None
        noise = np.asarray(rng.standard_normal(gradients[idle[0]].shape))
        noise *= (max(moving.values()) or 1.0) / np.linalg.norm(noise)
        return Planted(added={idle[0]: noise}, wrong=frozenset(idle[:1]))
    names = [n for n, norm in moving.items() if norm > 0]
    if not names:
        return None
    name = names[rng.integers(len(names))]
    if fault.name in ("None", "detach"):
        how = "missing" if fault.name == "None" else "detached"
        return Planted(**{how: frozenset([name])}, wrong=frozenset([name]))
    if fault.name == "partial detach":
        return Planted(added={name: np.asarray(-fault.size * gradients[name])}, wrong=frozenset([name]))
    if fault.name == "all tensors x 16":
        return Planted(added={n: 15 * g for n, g in gradients.items()}, wrong=frozenset(names))
    if fault.name == "swapped tensors":
        return _swapped(gradients, names)
    added = np.asarray(_CHANGES[fault.name](gradients[name], fault.size, rng) - gradients[name])
    least = 0.0 if fault.size else _GROSS * moving[name]
    return Planted(added={name: added}, wrong=frozenset([name])) if np.linalg.norm(added) > least else None


def _swapped(gradients: dict[str, np.ndarray], names: list[str]) -> Planted | None:
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            a, b = gradients[one], gradients[other]
            if a.shape == b.shape and np.linalg.norm(a - b) > _GROSS * np.linalg.norm(a):
                return Planted(added={one: b - a, other: a - b}, wrong=frozenset([one, other]))
    return None


def handed_over(planted: Planted, dtype: str) -> Callable[[dict], dict]:
    """The change of the model's own gradient."""

    def change(gradients):
        for name, error in planted.added.items():
            right = 0.0 if gradients[name] is None else gradients[name].astype(np.float64)
            gradients[name] = (right + error).astype(dtype)
        return gradients | dict.fromkeys(planted.missing)

    return change


def right_gradients(case: Case, parameters: dict, data: dict) -> dict[str, np.ndarray]:
    """In float64 by PyTorch; zero where there is none."""
    from gradaudit.backends.torch.model import TorchModel

    function = framework_function(Case(case.recipe, "torch", "float64"), data, Planted())
    _, found = TorchModel(function, parameters, n_threads=1).value_and_grad(parameters)
    return {n: np.zeros(p.shape) if found[n] is None else np.asarray(found[n]) for n, p in parameters.items()}


# ---------------------------------------------------------------- what is audited


def cases(backends: Sequence[str]) -> list[Case]:
    """The correct models: everything on NumPy and PyTorch, a part on the backends that compile."""
    found = []
    for i, recipe in enumerate(RECIPES.values()):
        where = {"numpy": ("float64", "float32 alone"), "torch": KINDS}
        where |= {"jax": KINDS if i % 3 == 0 else (), "tensorflow": KINDS if i % 5 == 1 else ()}
        for backend in backends:
            kinds = where[backend] if not recipe.large or backend == "torch" else ()
            found += [Case(recipe.name, backend, k) for k in kinds if recipe.alone or k != "float32 alone"]
    return found


def tasks(backend: str, seeds: Iterable[int]) -> Iterator[tuple[Case, Fault | None, int]]:
    """Correct models and, for each fault, a few models of each kind, other ones with each seed."""
    every = cases([backend])
    for seed in seeds:
        for case in every:
            if not RECIPES[case.recipe].large or seed < _LARGE_SEEDS:
                yield case, None, seed
        for kind in KINDS:
            mine = [c for c in every if c.kind == kind and not RECIPES[c.recipe].large]
            for k, fault in enumerate(faults(kind) if mine else []):
                order = np.random.default_rng([seed, k, len(kind)]).permutation(len(mine))
                yield from ((mine[i], fault, seed) for i in _fitting(mine, fault, order, seed))


def _fitting(mine: Sequence[Case], fault: Fault, order: Sequence[int], seed: int) -> list[int]:
    """The first few models in this order that the fault can be planted in."""
    wanted = _MODELS_A_FAULT if mine[0].backend in ("numpy", "torch") else 1
    found = []
    for i in order:
        case = mine[i]
        parameters, data = RECIPES[case.recipe].case(seed)
        gradients = right_gradients(case, parameters, data)
        if plant(fault, RECIPES[case.recipe], gradients, parameters, _rng(case, fault, seed)) is not None:
            found.append(i)
        if len(found) == wanted:
            break
    return found


def _rng(case: Case, fault: Fault, seed: int) -> Any:
    return np.random.default_rng([seed, *f"{case.name} {fault}".encode()])


def prepare(case: Case, fault: Fault | None, seed: int) -> tuple[Any, Planted]:
    """The model of a task."""
    parameters, data = RECIPES[case.recipe].case(seed)
    if fault is None:
        return build(case, parameters, data, Planted()), Planted()
    gradients = right_gradients(case, parameters, data)
    planted = plant(fault, RECIPES[case.recipe], gradients, parameters, _rng(case, fault, seed))
    assert planted is not None
    if fault.where == "own":
        return Changed(build(case, parameters, data, Planted()), handed_over(planted, case.dtype)), planted
    return build(case, parameters, data, planted), planted


def audited(case: Case, fault: Fault | None, seed: int) -> Outcome:
    """Audit one."""
    model, planted = prepare(case, fault, seed)
    return _outcome(case, fault, seed, model, planted.wrong)


def _outcome(case: Case, fault: Fault | None, seed: int, model: Any, wrong: frozenset[str], **options: Any) -> Outcome:
    started = time.perf_counter()
    try:
        report = gradaudit.audit(model, seed=seed, **options)
    except Exception as error:  # noqa: BLE001  # an audit that raises is a result too
        return Outcome(case=case, fault=fault, seed=seed, verdict="ERROR", note=f"{type(error).__name__}: {error}")
    blamed = [p for p in report.parameters if p.verdict is not gradaudit.Verdict.AGREE]
    return Outcome(
        case=case,
        fault=fault,
        seed=seed,
        verdict=str(report.verdict),
        resolution=max(p.resolution for p in report.parameters),
        codes=" ".join(f.code for f in report.findings),
        evaluations=report.evaluations,
        gradients=report.gradients,
        seconds=time.perf_counter() - started,
        source=report.source,
        note=", ".join(f"{p.name} {p.verdict} rel {p.relative_error:.1e} res {p.resolution:.1e}" for p in blamed[:4]),
        blamed=tuple(p.name for p in blamed if p.verdict is gradaudit.Verdict.DISAGREE),
        wrong=wrong,
    )


def recurrent(backend: str, seed: int) -> list[Outcome]:
    """gradaudit's own layers: no truncation; a declared one, accepted and not; its gradient changed."""
    outcomes = []
    for activation, dtype in (("tanh", "float64"), ("softmax", "float32"), ("relu", "float64"), ("sigmoid", "float32")):
        spec = RecurrentSpec(n_features=2, n_classes=3, activation=activation, learn_initial_state=activation == "tanh")
        data = random_sequences(spec, n_sequences=4, n_steps=25, seed=seed, dtype=dtype)
        rng = np.random.default_rng(seed)
        weights = {n: (0.5 * rng.standard_normal(s)).astype(dtype) for n, s in spec.shapes().items()}
        full, cut = (registry.get(backend).recurrent_model(spec, weights, data, t) for t in (none(), tail(3)))
        kind = KINDS[0] if dtype == "float64" else KINDS[1]
        make = lambda what, kind=kind, activation=activation: Case(f"layer, {activation}, {what}", backend, kind)  # noqa: E731
        outcomes.append(_outcome(make("none"), None, seed, full, frozenset()))
        outcomes.append(_outcome(make("tail accepted"), None, seed, cut, frozenset(), truncation=tail(3)))
        truncated = Fault("truncated", None, "function")
        outcomes.append(_outcome(make("tail"), truncated, seed, cut, frozenset()))
        halved = Changed(full, lambda g: g | {"R": g["R"] * np.asarray(1.01, g["R"].dtype)}, ["with_truncation"])
        outcomes.append(_outcome(make("none"), Fault("scale 1+d", 1e-2), seed, halved, frozenset(["R"])))
    return outcomes


# ---------------------------------------------------------------- rivals


def gradcheck(case: Case, fault: Fault | None, seed: int) -> Iterator[tuple[str, bool]]:
    """PyTorch's, on a function whose backward has the fault."""
    import torch

    parameters, function = _for_rival(case, fault, seed)
    names = list(parameters)
    tensors = [torch.tensor(p, dtype=getattr(torch, case.dtype), requires_grad=True) for p in parameters.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for fast in (False, True):
            passed = torch.autograd.gradcheck(
                lambda *xs: function(dict(zip(names, xs, strict=True))), tensors, fast_mode=fast, raise_exception=False
            )
            yield f"gradcheck {'fast' if fast else 'slow'}", passed


def check_grads(case: Case, fault: Fault | None, seed: int) -> Iterator[tuple[str, bool]]:
    """JAX's, reverse mode, first order."""
    import jax
    from jax.test_util import check_grads as check

    parameters, function = _for_rival(case, fault, seed)
    with jax.enable_x64(case.dtype == "float64"):
        cast = {n: jax.numpy.asarray(p, case.dtype) for n, p in parameters.items()}
        try:
            check(jax.jit(function), (cast,), 1, modes=["rev"])
        except AssertionError:
            yield "check_grads", False
        else:
            yield "check_grads", True


def compute_gradient(case: Case, fault: Fault | None, seed: int) -> Iterator[tuple[str, bool]]:
    """TensorFlow's, with the threshold of its own tests."""
    import tensorflow as tf

    parameters, function = _for_rival(case, fault, seed)
    names = list(parameters)
    compiled = tf.function(lambda *xs: function(dict(zip(names, xs, strict=True))))
    analytic, numeric = tf.test.compute_gradient(compiled, [tf.constant(p, case.dtype) for p in parameters.values()])
    errors = [np.abs(a - n).max(initial=0) for a, n in zip(analytic, numeric, strict=True)]
    yield "compute_gradient", bool(max(errors) <= 1e-3)


_RIVALS = {"torch": gradcheck, "jax": check_grads, "tensorflow": compute_gradient}


def _for_rival(case: Case, fault: Fault | None, seed: int) -> tuple[dict, Callable[[dict], Any]]:
    """Parameters and a function with the same gradient: what a model hands over is what its backward gives here."""
    parameters, data = RECIPES[case.recipe].case(seed)
    planted = Planted()
    if fault is not None:
        gradients = right_gradients(case, parameters, data)
        planted = plant(fault, RECIPES[case.recipe], gradients, parameters, _rng(case, fault, seed)) or planted
        zeroed = {n: -gradients[n] for n in planted.missing | planted.detached}
        planted = Planted(added=planted.added | zeroed, options=planted.options)
    return parameters, framework_function(case, data, planted)


def rival(case: Case, fault: Fault | None, seed: int) -> list[Outcome]:
    """What the framework's own checker says; a twin is nothing to it."""
    size = sum(p.size for p in RECIPES[case.recipe].case(seed)[0].values())
    if case.backend not in _RIVALS or case.kind == "float32 alone" or size > _RIVAL_MOST:
        return []
    started = time.perf_counter()
    outcomes = []
    try:
        for name, passed in _RIVALS[case.backend](case, fault, seed):
            seconds = time.perf_counter() - started
            verdict = "AGREE" if passed else "DISAGREE"
            outcomes.append(Outcome(case=case, fault=fault, seed=seed, verdict=verdict, by=name, seconds=seconds))
    except Exception as error:  # noqa: BLE001  # its answer is an exception
        note = f"{type(error).__name__}: {str(error)[:100]}"
        name = _RIVALS[case.backend].__name__
        outcomes.append(Outcome(case=case, fault=fault, seed=seed, verdict="ERROR", by=name, note=note))
    return outcomes


# ---------------------------------------------------------------- runs


def run_backend(job: tuple[str, int, bool]) -> list[Outcome]:
    """All tasks of one backend."""
    backend, seeds, rivals = job
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it says when vectorized_map falls back to a loop
    outcomes = []
    for n, (case, fault, seed) in enumerate(tasks(backend, range(seeds))):
        outcomes.append(audited(case, fault, seed))
        if rivals and seed == 0 and (fault is None or n % _RIVAL_EVERY == 0):
            outcomes += rival(case, fault, seed)
    for seed in range(seeds):
        outcomes += recurrent(backend, seed)
    return outcomes


def false_alarms(job: tuple[str, int, int]) -> list[Outcome]:
    """Audits of correct models, each with a seed of its own."""
    backend, n, first = job
    every = [c for c in cases([backend]) if not RECIPES[c.recipe].large]
    return [audited(every[i % len(every)], None, first + i) for i in range(n)]


def _spread(function: Callable[[Any], list[Outcome]], jobs: Sequence[Any], processes: int) -> list[Outcome]:
    if processes == 1:
        return [o for job in jobs for o in function(job)]
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        return [o for found in pool.imap_unordered(function, jobs, chunksize=1) for o in found]


# ---------------------------------------------------------------- tables


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Plain columns."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print(f"\n{title}")
    for row in cells:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  " + "  ".join(padded))


def _grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], Any]) -> dict[Any, list[Outcome]]:
    groups = defaultdict(list)
    for o in outcomes:
        groups[key(o)].append(o)
    return dict(groups)


def _counts(group: Sequence[Outcome]) -> list[int]:
    verdicts = Counter(o.verdict for o in group)
    return [verdicts[v] for v in ("AGREE", "DISAGREE", "INCONCLUSIVE", "ERROR")]


def _cost(group: Sequence[Outcome]) -> list[str]:
    return [f"{np.mean([o.evaluations for o in group]):.0f}", f"{np.median([o.seconds for o in group]):.2f}"]


def correct_table(outcomes: Sequence[Outcome]) -> None:
    """Correct gradients."""
    head = ("correct gradients", "n", "AGREE", "false DISAGREE", "INCONCLUSIVE", "ERROR", "evaluations", "median s")
    right = [o for o in outcomes if o.fault is None]
    groups = _grouped(right, lambda o: o.case.kind) | _grouped(right, lambda o: f"{o.case.backend}, {o.case.kind}")
    rows = [[name, len(g), *_counts(g), *_cost(g)] for name, g in sorted(groups.items())]
    table("Correct gradients", head, rows)


def wrong_table(outcomes: Sequence[Outcome]) -> None:
    """Wrong gradients by fault and size."""
    head = ("fault", "n", "missed", "found", "INCONCLUSIVE", "ERROR", "right tensors blamed", "evaluations", "median s")
    wrong = [o for o in outcomes if o.fault is not None]
    for kind in KINDS:
        mine = [o for o in wrong if o.case.kind == kind]
        sizes = _grouped(mine, lambda o: (f"all of d = {o.fault.size:g}" if o.fault.size else "all gross", ""))
        groups = _grouped(mine, lambda o: (f"{o.fault.name}, {o.fault.where}", f"{o.fault.size or ''}"))
        rows = [
            [" ".join(name), len(g), *_counts(g), sum(bool(o.innocent) for o in g), *_cost(g)]
            for name, g in [*sorted(sizes.items(), reverse=True), *sorted(groups.items())]
        ]
        table(f"Wrong gradients, {kind}", head, rows)


def rival_table(outcomes: Sequence[Outcome]) -> None:
    """Beside gradaudit on exactly the cases that each rival answered; an exception is no answer."""
    own = {(o.case, o.fault, o.seed): o for o in outcomes if o.by == "gradaudit"}
    answers = _grouped((o for o in outcomes if o.by != "gradaudit"), lambda o: f"{o.by}, {o.case.dtype}")
    rows = []
    for name, group in sorted(answers.items()):
        columns = []
        for part in ([o for o in group if o.fault is None], [o for o in group if o.fault is not None]):
            counts = _counts(part)
            ours = _counts([own[o.case, o.fault, o.seed] for o in part])
            columns += [len(part), counts[1], counts[3], ours[1], ours[2]]
        rows.append([name, *columns, f"{np.median([o.seconds for o in group]):.2f}"])
    ours = ("ours", "ours INCONCLUSIVE")
    head = ("rival, dtype", "correct", "false alarms", "raised", *ours, "wrong", "found", "raised", *ours, "median s")
    table("Rivals at their defaults", head, rows)


def listing(outcomes: Sequence[Outcome]) -> None:
    """Everything that is not as it should be, by name."""
    groups = {
        "FALSE ALARM": [o for o in outcomes if o.fault is None and o.verdict == "DISAGREE"],
        "ERROR": [o for o in outcomes if o.verdict == "ERROR"],
        "MISSED": [o for o in outcomes if o.fault is not None and o.verdict == "AGREE"],
        "RIGHT TENSOR BLAMED": [o for o in outcomes if o.fault is not None and o.innocent],
        "INCONCLUSIVE, correct": [o for o in outcomes if o.fault is None and o.verdict == "INCONCLUSIVE"],
        "INCONCLUSIVE, wrong": [o for o in outcomes if o.fault is not None and o.verdict == "INCONCLUSIVE"],
    }
    for title, group in groups.items():
        print(f"\n{title}: {len(group)}")
        for o in sorted(group, key=lambda o: (o.case.kind, o.case.recipe, o.seed)):
            fault = "" if o.fault is None else f" [{o.fault} in {', '.join(o.wrong) or 'all'}]"
            print(f"  {o.case.name} | seed {o.seed}{fault}: resolution {o.resolution:.1e}, {o.codes or '-'}, {o.note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frameworks = ("numpy", "torch", "jax", "tensorflow")
    installed = [name for name in frameworks if registry.installed_version(name)]
    parser.add_argument("--backends", nargs="*", default=installed, choices=installed)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1000, help="the first seed of --false-alarms")
    parser.add_argument("--rivals", action="store_true", help="the frameworks' own checkers on the first seed")
    parser.add_argument("--false-alarms", type=int, default=0, metavar="N", help="N audits of correct models instead")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    chosen = parser.parse_args()
    started = time.perf_counter()
    if chosen.false_alarms:
        each = math.ceil(chosen.false_alarms / len(chosen.backends))
        jobs = [(b, each, chosen.first + each * i) for i, b in enumerate(chosen.backends)]
        outcomes = _spread(false_alarms, jobs, chosen.jobs)
    else:
        outcomes = _spread(run_backend, [(b, chosen.seeds, chosen.rivals) for b in chosen.backends], chosen.jobs)
    own = [o for o in outcomes if o.by == "gradaudit"]
    correct_table(own)
    if not chosen.false_alarms:
        wrong_table(own)
    if chosen.rivals:
        rival_table(outcomes)
    listing(own)
    print(f"\n{len(own)} audits, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
