"""The gradient of one tensor step by step along its axis of time: where it is right, and where it stops to be."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradaudit.arrays import Array
from gradaudit.compare import Comparison, Verdict, worst
from gradaudit.direction import random_direction
from gradaudit.errors import OptionError
from gradaudit.measure.baseline import baseline
from gradaudit.measure.measurement import further, measured
from gradaudit.measure.plan import Probe, scales
from gradaudit.measure.state import preserved
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model
from gradaudit.render.to_plot import step_plot
from gradaudit.render.to_text import number, table

__all__ = ["StepView", "by_step"]

_OTHER = 7_919
#: Runs of steps that the text shows; more are told by their number.
_MOST_RUNS = 24
#: And so many steps one by one, in lines of so many.
_MOST_SHOWN, _A_LINE = 400, 80
_LEGEND = (
    "  By step: the size, so many powers of ten below the largest; and how much of it is off, 0 all,",
    "  1 a third, 2 a tenth, 3 a thirtieth, ..., . nothing.",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepView:
    """Analytic against numeric derivatives of the loss along random directions, each within one step of a tensor.

    Attributes:
        tensor: its name.
        axis: of time.
        analytic: (T,), by step.
        numeric: (T,).
        bound: (T,), of the error of the numeric ones.
        verdicts: by step.
        evaluations: forward passes in all.
    """

    tensor: str
    axis: int
    analytic: Array
    numeric: Array
    bound: Array
    verdicts: tuple[Verdict, ...]
    evaluations: int

    @property
    def verdict(self) -> Verdict:
        """The worst of all steps."""
        return worst(self.verdicts)

    @property
    def ratio(self) -> Array:
        """Analytic / numeric, (T,): 1 where right, 0 behind a cut; NaN where the loss does not depend on a step."""
        known = np.abs(self.numeric) > self.bound
        return np.where(known, self.analytic / np.where(known, self.numeric, 1.0), np.nan)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which steps disagree, (T,)."""
        return np.array([verdict is Verdict.DISAGREE for verdict in self.verdicts])

    def picture(self) -> str:
        """All steps, one character each, 80 to a line.

        Above, how large the numeric derivative is: so many powers of ten below the largest, ``.`` where the loss does
        not depend on the step. Below, how much of it the analytic one is off: 0 all of it or more, 1 a third, 2 a
        tenth, 3 a thirtieth, ...; ``.`` agree, ``?`` inconclusive. There, a tail is a row of zeros with a cliff, chunks
        are saw teeth, a window is a band, and a gradient that vanishes is a slope above and dots below.
        """
        sizes, missing = np.abs(self.numeric), np.abs(self.analytic - self.numeric)
        known = sizes > self.bound
        largest = sizes[known].max(initial=0.0)
        above = [_digit(size, largest) if there else "." for size, there in zip(sizes, known, strict=True)]
        signs = {Verdict.AGREE: ".", Verdict.INCONCLUSIVE: "?"}
        below = [
            signs.get(verdict) or _digit(gap, size, finer=2)
            for verdict, gap, size in zip(self.verdicts, missing, sizes, strict=True)
        ]
        digits, lines = len(f"{len(above):,}"), []
        for start in range(0, len(above), _A_LINE):
            part = slice(start, start + _A_LINE)
            lines += [
                f"  {start + 1:{digits},} size  {''.join(above[part])}",
                f"  {'':{digits}} off   {''.join(below[part])}",
            ]
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Both derivatives and their relative error by step, drawn to a PNG, SVG or PDF. Needs the extra ``plot``.

        Raises:
            OptionError: matplotlib is not installed, or does not know the ending.
        """
        step_plot(self, Path(path))

    def runs(self) -> Iterator[tuple[int, int, Verdict]]:
        """Consecutive steps of one verdict, as (first, last, verdict), steps counted from 1."""
        at = 0
        for verdict, group in groupby(self.verdicts):
            n = len(list(group))
            yield at + 1, at + n, verdict
            at += n

    def __str__(self) -> str:
        ratio, rows = self.ratio, [["steps", "|analytic|", "|numeric|", "analytic / numeric", "verdict"]]
        runs = list(self.runs())
        for first, last, verdict in runs[-_MOST_RUNS:]:
            part = slice(first - 1, last)
            known = ratio[part][np.isfinite(ratio[part])]
            ends = [number(known.min()), number(known.max())] if known.size else [""]
            span = " .. ".join(dict.fromkeys(ends))
            sizes = (float(np.linalg.norm(a[part])) for a in (self.analytic, self.numeric))
            steps = f"{first}" if first == last else f"{first}..{last}"
            rows.append([steps, *map(number, sizes), span, verdict.name])
        n_steps, more = len(self.verdicts), len(runs) - _MOST_RUNS
        head = f"{self.verdict.name}   {self.tensor} by step, {n_steps:,} steps along axis {self.axis}"
        shown = [f"{head}, {self.evaluations:,} evaluations", "", *table(rows, right=(1, 2, 3))]
        if more > 0:
            shown.append(f"  and {more} runs of steps before")
        if self.wrong.any() and n_steps <= _MOST_SHOWN:
            shown += ["", *_LEGEND, self.picture()]
        return "\n".join(shown)


def _digit(size: float, whole: float, *, finer: int = 1) -> str:
    """How many powers of ten, or parts of one, a size is below the whole, rounded, at most 9."""
    if not size > 0:
        return "9"
    return str(int(np.clip(np.rint(-finer * np.log10(size / whole)), 0, 9))) if size < whole else "0"


def by_step(model: Model, tensor: str, axis: int, options: AuditOptions) -> StepView:
    """Compare the derivatives within each step of a tensor, with 8 evaluations a step, in batches.

    Raises:
        OptionError: the model has no such tensor, or it no such axis; the loss or its gradient is not repeatable, or
            the budget ends first.
    """
    parameters = model.parameters()
    if tensor not in parameters:
        msg = f"there is no tensor {tensor!r}"
        raise OptionError(msg, where="by_step()", hint=f"one of {', '.join(parameters)}")
    shape = parameters[tensor].shape
    if not -len(shape) <= axis < len(shape):
        msg = f"{tensor} has shape {shape}, and no axis {axis}"
        raise OptionError(msg, where="by_step()", hint="axis=0")
    axis %= len(shape)
    options, budget = replace(options, parameters=glob.escape(tensor)), Budget(options.max_evaluations)
    with preserved(model), np.errstate(all="ignore"):
        looks = _looks(model, list(_probes(parameters[tensor], tensor, axis, options.seed + _OTHER)), options, budget)
    if not looks:
        msg = "the loss has no numeric derivative to compare with: it is random, or has a jump"
        raise OptionError(msg, where="by_step()", hint="gradaudit.audit says which")
    return _view(tensor, axis, looks, budget.evaluations)


def _looks(model: Model, probes: list[Probe], options: AuditOptions, budget: Budget) -> list[Comparison]:
    """Empty without a numeric derivative."""
    base = baseline(model, options, budget)
    if not base.repeatable:
        return []
    total = measured(model, base.loss, base.gradients, options, budget)
    try:
        return further(total, base.gradients, probes, options, budget)
    except Stop:
        msg = f"{len(probes):,} steps take more than max_evaluations={options.max_evaluations:,} forward passes"
        raise OptionError(msg, where="by_step()", hint=f"max_evaluations={10 * len(probes) + 1_000}") from None


def _probes(parameter: Array, name: str, axis: int, seed: int) -> Iterator[Probe]:
    n = parameter.shape[axis]
    size = scales({name: parameter})[name]
    for step in range(n):
        within = (np.arange(n) == step).astype(float).reshape([n if i == axis else 1 for i in range(parameter.ndim)])
        yield Probe(random_direction(f"{name}, step {step + 1}", {name: size * within}, seed + step), name)


def _view(tensor: str, axis: int, looks: list[Comparison], evaluations: int) -> StepView:
    numbers: dict[str, Any] = {
        name: np.array([getattr(look, name) for look in looks]) for name in ("analytic", "numeric", "bound")
    }
    verdicts = tuple(look.verdict for look in looks)
    return StepView(tensor=tensor, axis=axis, verdicts=verdicts, evaluations=evaluations, **numbers)
