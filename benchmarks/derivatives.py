"""Is the true derivative inside the bound, how tight is the bound, and what does it cost?

    python benchmarks/derivatives.py --fixed                       # with rivals
    python benchmarks/derivatives.py --fresh 10000 --seed 7 --jobs 2
    python benchmarks/derivatives.py --weak                        # kinks, plateaus, ReLU nets, hidden single precision

"Covered" counts |value - truth| <= bound. An infinite bound covers, and is counted under "none": the estimator said
that it could not say. Rivals call theirs error estimates, not bounds, and are taken at face value: see also the column
"within 10 bounds". Medians and percentiles are taken over all problems with a truth other than zero, an answer that is
missing counting as infinitely wrong. Seeds below 100 are for tuning; report on others.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import problems
from problems import Problem

from gradaudit.backends.numpy import NumpyModel
from gradaudit.direction import Direction, Point, displace
from gradaudit.numeric.budget import Budget
from gradaudit.numeric.estimate import Known, estimate, follow_up
from gradaudit.numeric.sampler import Sampler

_FIRST, _NEXT = "gradaudit, first direction", "gradaudit, next directions"
_CHUNK = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """One estimate beside the truth.

    Attributes:
        estimator: who made it.
        name: of the problem.
        family: of the problem.
        analytic: <gradient, v>, what an audit compares the value with.
        sides: the one-sided slopes, where they differ.
        amplitude: see `Problem`.
    """

    estimator: str
    name: str
    family: str
    value: float
    bound: float
    truth: float
    evaluations: int
    status: str = ""
    analytic: float = math.nan
    sides: tuple[float, float] | None = None
    amplitude: float | None = None

    @property
    def error(self) -> float:
        return abs(self.value - self.truth) if np.isfinite(self.value) else math.inf

    @property
    def silent(self) -> bool:
        """It said that it does not know."""
        return self.bound == math.inf

    @property
    def covered(self) -> bool:
        return self.silent or self.error <= self.bound

    @property
    def excess(self) -> float:
        """Error over bound: above 1, a miss."""
        if self.silent or self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound > 0 else math.inf


# --- asking -----------------------------------------------------------------------------------------------------------


def ask(problem: Problem, *, further: bool = True) -> list[Outcome]:
    """A full estimate along the problem's direction, then follow-ups along others, as an audit would."""
    dtype = str(np.asarray(problem.loss(problem.parameters)).dtype)
    model = NumpyModel(problem.loss, problem.parameters, gradient=lambda _: problem.gradient)
    sampler = Sampler(model, Budget(10**6), gradients=problem.gradient, batch_bytes=10**6, dtype=dtype)
    try:
        (first,) = estimate(sampler, [problem.direction], "first")
    except Exception as error:  # noqa: BLE001  # a crash is the worst of misses, but the others are to be counted too
        return [_crash(problem, error)]
    outcomes = [_outcome(_FIRST, problem, problem.direction, problem.truth, first)]
    if further and np.isfinite(first.bound):
        known = Known(**{field.name: getattr(first, field.name) for field in fields(Known)})
        others = problems.directions(problem)
        for direction, found in zip(others, follow_up(sampler, others, known, "next"), strict=True):
            outcomes.append(_outcome(_NEXT, problem, direction, problem.along(direction), found))
    return outcomes


def _outcome(estimator: str, problem: Problem, direction: Direction, truth: float, found: Any) -> Outcome:
    return Outcome(
        estimator=estimator,
        name=problem.name if direction is problem.direction else f"{problem.name} along {direction.label}",
        family=problem.family,
        value=float(found.value),
        bound=float(found.bound),
        truth=float(truth),
        evaluations=int(found.evaluations),
        status=str(found.status),
        analytic=direction.dot(problem.gradient),
        sides=problem.sides,
        amplitude=problem.amplitude,
    )


def _crash(problem: Problem, error: Exception) -> Outcome:
    status = f"crashed ({type(error).__name__})"
    return Outcome(_FIRST, problem.name, problem.family, math.nan, math.nan, problem.truth, 0, status)


def ask_rivals(problem: Problem) -> list[Outcome]:
    """The same lines for everybody else; they see the plain losses, with NaN outside the domain."""
    from rivals import RIVALS

    dtype = np.asarray(problem.loss(problem.parameters)).dtype

    def phi(t: float) -> float:
        try:
            value = float(problem.loss(displace(problem.parameters, Point(problem.direction, t))))
        except ValueError:
            return math.nan
        return value if np.isfinite(value) else math.nan

    outcomes = []
    for name, rival in RIVALS.items():
        value, bound, evaluations = rival(phi, float(np.finfo(dtype).eps))
        outcomes.append(Outcome(name, problem.name, problem.family, value, bound, problem.truth, evaluations))
    return outcomes


# --- work in chunks, each made where it is solved: a problem holds functions, which do not travel between processes ---

Task = tuple[str, tuple[Any, ...]]


def _made(task: Task) -> Iterable[Problem]:
    kind, arguments = task
    if kind == "fixed":
        dtype, start = arguments
        return problems.fixed(dtype)[start : start + _CHUNK]
    return getattr(problems, kind)(*arguments)


def work(job: tuple[Task, bool, bool]) -> list[Outcome]:
    """Everything that is asked about one chunk of problems."""
    task, further, rivals = job
    outcomes = []
    with np.errstate(all="ignore"):
        for problem in _made(task):
            outcomes += ask(problem, further=further)
            outcomes += ask_rivals(problem) if rivals else []
    return outcomes


def run(tasks: Sequence[Task], jobs: int, *, further: bool = True, rivals: bool = False) -> list[Outcome]:
    """All chunks, in order."""
    queue = [(task, further, rivals) for task in tasks]
    if jobs == 1:
        return [o for job in queue for o in work(job)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        return [o for part in pool.imap(work, queue) for o in part]


def fixed_tasks(dtype: str) -> list[Task]:
    return [("fixed", (dtype, start)) for start in range(0, len(problems.fixed(dtype)), _CHUNK)]


def fresh_tasks(dtype: str, n: int, seed: int) -> list[Task]:
    """Chunk k has the seed (seed, k): more problems are the same ones and others."""
    starts = range(0, n, _CHUNK)
    return [("fresh", (dtype, min(_CHUNK, n - start), seed * 10**6 + start // _CHUNK)) for start in starts]


def weak_tasks(dtype: str, seed: int, scale: float) -> list[Task]:
    """The numbers of the notes, sections 4 and 8, times ``scale``."""

    def of(n: int) -> int:
        return max(1, round(n * scale))

    tasks: list[Task] = [("relu_nets", (dtype, 1, seed + 1000 * k)) for k in range(of(126))]
    tasks.append(("saturating_offset", (dtype, of(300), seed)))
    if dtype == "float64":
        tasks.append(("hidden_single", (of(300), seed)))
    tasks += [("kinks", (dtype, kind, of(40), seed)) for kind in problems.KINDS]
    return [*tasks, ("jumps", (dtype, of(300), seed)), ("staircases", (dtype, of(150), seed))]


# --- telling ----------------------------------------------------------------------------------------------------------


def _grouped(outcomes: Iterable[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome)].append(outcome)
    return groups


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.1e}"


def _quantiles(sizes: Sequence[float]) -> tuple[str, str]:
    if not sizes or any(math.isnan(size) for size in sizes):
        return "-", "-"
    ranked = np.quantile(np.array(sizes), [0.5, 0.95], method="higher")
    return _number(ranked[0]), _number(ranked[1])


def _summary(outcomes: Sequence[Outcome]) -> list[str]:
    """A row of the table: see _COLUMNS."""
    bounded = not all(math.isnan(o.bound) for o in outcomes)
    relative = [o for o in outcomes if o.truth != 0]
    bounds = [math.inf if math.isnan(o.bound) else o.bound / abs(o.truth) for o in relative]
    return [
        str(len(outcomes)),
        f"{100 * np.mean([o.covered for o in outcomes]):.2f}" if bounded else "-",
        str(sum(not o.covered for o in outcomes)) if bounded else "-",
        f"{100 * np.mean([o.excess <= 10 for o in outcomes]):.2f}" if bounded else "-",
        str(sum(o.silent for o in outcomes)) if bounded else "-",
        f"{max(o.excess for o in outcomes):.2g}" if bounded else "-",
        "/".join(_quantiles(bounds)) if bounded else "-",
        "/".join(_quantiles([o.error / abs(o.truth) for o in relative])),
        f"{np.mean([o.evaluations for o in outcomes]):.1f}",
    ]


_COLUMNS = (
    *("n", "covered %", "misses", "within 10 bounds %", "none", "worst err/bound"),
    *("bound med/95%", "error med/95%", "evaluations"),
)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be."""
    lines = [(title, *head), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells))
    print()


def report(title: str, outcomes: Sequence[Outcome], worst: int) -> None:
    """One row an estimator, hard problems apart, then what went worst."""
    groups = _grouped(outcomes, lambda o: o.estimator + (" (hard)" if o.family == "hard" else ""))
    table(title, _COLUMNS, [[name, *_summary(group)] for name, group in groups.items()])
    offenders([o for o in outcomes if o.estimator in {_FIRST, _NEXT}], worst)


def tail(outcomes: Sequence[Outcome]) -> None:
    """How the ratio of error to bound is distributed: what `gradaudit.compare` builds its false-alarm rate on."""
    for name, group in _grouped([o for o in outcomes if o.estimator in (_FIRST, _NEXT)], lambda o: o.estimator).items():
        ratios = [o.excess for o in group if math.isfinite(o.bound) and math.isfinite(o.excess)]
        shares = "  ".join(f"P(>{c}) {np.mean(np.array(ratios) > c):.1e}" for c in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0))
        print(f"  tail, {name}: n {len(ratios)}  {shares}")


def families(title: str, outcomes: Sequence[Outcome]) -> None:
    """The same by family, first and next directions apart."""
    for estimator in (_FIRST, _NEXT):
        groups = _grouped((o for o in outcomes if o.estimator == estimator), lambda o: o.family)
        rows = [[name, *_summary(group)] for name, group in sorted(groups.items())]
        table(f"{title}: {estimator}", _COLUMNS, rows)


def offenders(outcomes: Sequence[Outcome], worst: int) -> None:
    """Every miss, up to a number, and the nearest to one."""
    ranked = sorted(outcomes, key=lambda o: (o.covered, -o.excess))
    for o in ranked[:worst]:
        mark = "   " if o.covered else "MISS"
        print(f"  {mark:4} {o.excess:8.2g}  {o.estimator.split(',')[-1].strip():15}  [{o.family}] {o.name}:", end=" ")
        print(f"value {o.value:.9g}, truth {o.truth:.9g}, bound {o.bound:.2e}, {o.status}, {o.evaluations} evaluations")
    print()


def weak(title: str, outcomes: Sequence[Outcome], worst: int) -> None:
    """Coverage, how often the gradient lies outside the bound (it would be called wrong), and what was recognised."""
    rows = []
    for family, group in _grouped(outcomes, _weak_family).items():
        outside = sum(abs(o.analytic - o.value) > o.bound for o in group)
        statuses = ", ".join(f"{n} {status}" for status, n in Counter(o.status for o in group).most_common())
        summary = _summary(group)
        rows.append([family, *summary[:3], *summary[4:6], str(outside), summary[6], summary[8], statuses])
    head = (*_COLUMNS[:3], *_COLUMNS[4:6], "gradient outside", _COLUMNS[6], _COLUMNS[8], "status")
    table(title, head, rows)
    offenders([o for o in outcomes if o.sides is None], worst)


def _weak_family(o: Outcome) -> str:
    if o.amplitude is None:
        return o.family
    return f"{o.family} {'>= 1' if o.amplitude >= 1 else '< 1'} ulp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixed", action="store_true", help="the fixed set (the default where nothing is chosen)")
    parser.add_argument("--fresh", type=int, default=0, metavar="N", help="N random problems per dtype")
    parser.add_argument("--weak", action="store_true", help="kinks, jumps, plateaus, ReLU nets, hidden precision")
    parser.add_argument("--dtype", nargs="*", default=["float64", "float32"], choices=["float64", "float32"])
    parser.add_argument("--seed", type=int, default=100, help="of the fresh and the weak problems")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--worst", type=int, default=10, help="how many of the worst to list")
    parser.add_argument("--families", action="store_true", help="a table by family too")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of weak problems")
    parser.add_argument("--rivals", action=argparse.BooleanOptionalAction, default=True, help="on the fixed set")
    chosen = parser.parse_args()
    for dtype in chosen.dtype:
        started = time.perf_counter()
        if chosen.fixed or not (chosen.fresh or chosen.weak):
            outcomes = run(fixed_tasks(dtype), chosen.jobs, rivals=chosen.rivals)
            report(f"{dtype}, fixed", outcomes, chosen.worst)
            if chosen.families:
                families(f"{dtype}, fixed, by family", outcomes)
        if chosen.fresh:
            outcomes = run(fresh_tasks(dtype, chosen.fresh, chosen.seed), chosen.jobs)
            report(f"{dtype}, fresh, seed {chosen.seed}", outcomes, chosen.worst)
            tail(outcomes)
            if chosen.families:
                families(f"{dtype}, fresh, by family", outcomes)
        if chosen.weak:
            outcomes = run(weak_tasks(dtype, chosen.seed, chosen.scale), chosen.jobs, further=False)
            weak(f"{dtype}, weak, seed {chosen.seed}", outcomes, chosen.worst)
        print(f"{time.perf_counter() - started:.1f} s\n")


if __name__ == "__main__":
    main()
