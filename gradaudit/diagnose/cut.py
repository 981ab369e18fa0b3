"""Causes in the graph: lines that cut the gradient, and parameters that get none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradaudit.arrays import Array, Gradients, global_norm
from gradaudit.compare import Verdict
from gradaudit.diagnose.evidence import Evidence
from gradaudit.measure.judgement import Measurement
from gradaudit.render.to_text import number
from gradaudit.report import Finding
from gradaudit.sites import Cut

__all__ = ["at_line", "missing"]

#: More lines than this are not tried one by one; of those that share the gap, so many are named.
_MOST_LINES, _MOST_SHARED = 12, 3
#: A cut that closes less of the gap has no part in it.
_PART = 1e-3
_MEANT = "You mean this cut; the verdict is that of the gradient given it."


def at_line(evidence: Evidence) -> Finding | None:
    """GA101: cuts in the user's code that, removed or held, make analytic and numeric agree.

    One line after another is removed; if none alone explains the gap, the best is kept and others are added (greedy).
    Where that is not possible, or explains nothing, the values that a line cuts off are held at the base point.
    """
    wrong = evidence.wrong()
    lines = _by_line(evidence.cuts) if wrong else []
    if not lines:
        return None
    removed = _removed(evidence, wrong, lines[:_MOST_LINES])
    if removed is not None:
        cuts, full = removed
        shown = f"With {_it(cuts)} removed, the analytic gradient agrees with the numeric one."
        return _finding(evidence, wrong, cuts, shown, full)
    every = [cut for line in lines for cut in line]
    held = evidence.holding(every)
    if held is None or not _agree(held, wrong):
        return None
    alone = [line for line in lines[:_MOST_LINES] if (m := evidence.holding(line)) is not None and _agree(m, wrong)]
    cuts = alone[0] if alone else every
    shown = (
        f"With the values that {_it(cuts)} cut{'s' if len(cuts) == 1 else ''} off held at the base point, analytic "
        f"and numeric agree: an error above {number(held.resolution)} would have been seen."
    )
    return _finding(evidence, wrong, cuts, shown, None)


def _by_line(cuts: Sequence[Cut]) -> list[list[Cut]]:
    lines: dict[tuple[str, int], list[Cut]] = {}
    for cut in cuts:
        lines.setdefault((cut.path, cut.line), []).append(cut)
    return list(lines.values())


def _removed(
    evidence: Evidence, wrong: Sequence[str], lines: Sequence[list[Cut]]
) -> tuple[list[Cut], Gradients] | None:
    """The fewest cuts, found greedily, whose removal explains all that is wrong; and the gradient without them."""
    chosen: list[Cut] = []
    left = list(lines)
    gap = _gap(wrong, evidence.total)
    while left and len({(c.path, c.line) for c in chosen}) < _MOST_SHARED:
        tried = [(line, found) for line in left if (found := evidence.without([*chosen, *line])) is not None]
        for line, (gradients, measured) in tried:
            if _agree(measured, wrong):
                return [*chosen, *line], gradients
        gaps = [_gap(wrong, measured) for _, (_, measured) in tried]
        if not gaps or min(gaps) > (1 - _PART) * gap:
            return None
        best, gap = tried[int(np.argmin(gaps))][0], min(gaps)
        chosen += best
        left = [line for line in left if line is not best]
    return None


def _agree(measured: Measurement, names: Sequence[str]) -> bool:
    return all(measured.verdicts[name] is Verdict.AGREE for name in names)


def _gap(names: Sequence[str], measured: Measurement | None) -> float:
    """Root mean square of analytic minus numeric over the directions and entries of some tensors."""
    looks = [] if measured is None else [c for n in names for e in (False, True) for c in measured.of(n, entries=e)]
    squares = [(c.analytic - c.numeric) ** 2 for c in looks if np.isfinite(c.numeric) and np.isfinite(c.analytic)]
    return float(np.sqrt(np.mean(squares))) if squares else float("inf")


def _finding(
    evidence: Evidence, wrong: Sequence[str], cuts: Sequence[Cut], shown: str, full: Gradients | None
) -> Finding:
    times = [f"{cut} ({'once' if cut.executions == 1 else f'{cut.executions:,} times'})" for cut in cuts]
    names = ", ".join(wrong)
    numbers = {"executions": float(sum(cut.executions for cut in cuts))}
    share = ""
    if full is not None:
        numbers["removed"] = _removed_share(evidence.baseline.gradients, full, wrong)
        size = f"{_percent(numbers['removed'])} of what it is without {_it(cuts)}"
        share = f", which is zero without {_it(cuts)}" if np.isnan(numbers["removed"]) else f", by {size}"
    several = "cuts share" if len({(c.path, c.line) for c in cuts}) > 1 else "The gradient is cut by"
    start = f"{len(cuts)} {several} the gap: " if several == "cuts share" else f"{several} "
    return Finding(
        code="GA101",
        title=f"cut at {', '.join(dict.fromkeys(cut.place for cut in cuts))}",
        confidence="proven",
        sentence=f"{start}{', '.join(times)}. That changes the gradient of {names}{share}.",
        evidence=shown,
        remedy=_MEANT if _accepted(evidence, cuts) else _remedy(cuts),
        parameters=tuple(wrong),
        numbers=numbers,
    )


def _accepted(evidence: Evidence, cuts: Sequence[Cut]) -> bool:
    return all(any(cut.matches(glob) for glob in evidence.options.intended) for cut in cuts)


def _remedy(cuts: Sequence[Cut]) -> str:
    places = ", ".join(f'"{place}"' for place in dict.fromkeys(cut.place for cut in cuts))
    return (
        "If this is meant (a target, a truncation, a straight-through estimator): the backward pass is right given it; "
        f"pass intended=[{places}], and the report judges the gradient so. If not: remove it, or compute inside the "
        "graph what it cuts off."
    )


def _removed_share(gradients: Gradients, full: Gradients, names: Sequence[str]) -> float:
    def less(name: str) -> Array | None:
        g, f = gradients[name], full[name]
        return f if g is None or f is None else f - g

    whole = global_norm({name: full[name] for name in names})
    return global_norm({name: less(name) for name in names}) / whole if whole > 0 else float("nan")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _it(cuts: Sequence[Cut]) -> str:
    return "it" if len(cuts) == 1 else "them"


def missing(evidence: Evidence) -> Finding | None:
    """GA201: None or exactly zero, while the loss moves with the parameter."""
    gradients = evidence.baseline.gradients
    names = [n for n in evidence.wrong() if (g := gradients[n]) is None or not np.any(g)]
    if not names:
        return None
    none = [n for n in names if gradients[n] is None]
    what = "None" if len(none) == len(names) else "exactly zero" if not none else "None or exactly zero"
    return Finding(
        code="GA201",
        title="missing gradient",
        confidence="consistent",
        sentence=f"The gradient of {', '.join(names)} is {what}, but the loss changes when it moves.",
        evidence="Numeric derivatives are non-zero beyond their error bounds.",
        remedy="Look for a detach, stop_gradient, no_grad, a conversion to NumPy, or a tape that does not watch it.",
        parameters=tuple(names),
    )
