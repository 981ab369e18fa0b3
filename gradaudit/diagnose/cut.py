"""Causes in the graph: lines that cut the gradient, and parameters that get none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gradaudit.arrays import Array, Gradients, global_norm
from gradaudit.diagnose.evidence import Evidence
from gradaudit.diagnose.greedy import agree, fewest
from gradaudit.render.to_text import number
from gradaudit.report import Finding
from gradaudit.sites import Cut

__all__ = ["MEANT", "Blamed", "accepted", "at_line", "blame", "if_meant", "missing", "times"]

#: More lines than this are not held one by one.
_MOST_HELD = 12
MEANT = "You mean this cut; the verdict is that of the gradient given it."


class Blamed(NamedTuple):
    """Cuts that explain a gap, how that was shown, the gradient without them, if they can be removed, and of what."""

    cuts: Sequence[Cut]
    shown: str
    full: Gradients | None
    names: Sequence[str]


def at_line(evidence: Evidence) -> Finding | None:
    """GA101: cuts in the user's code that, removed or held, make analytic and numeric agree."""
    wrong = evidence.wrong()
    found = blame(evidence, wrong) if wrong else None
    return None if found is None else _finding(evidence, found)


def blame(evidence: Evidence, wrong: Sequence[str]) -> Blamed | None:
    """The fewest cuts that explain all that is wrong, or the cuts that explain some of it.

    One line after another is removed; if none alone explains the gap, the best is kept and others are added (greedy).
    Where that is not possible, or explains nothing, the values that a line cuts off are held at the base point.
    """
    own = [cut for cut in evidence.cuts if not cut.library]
    found = _among(evidence, wrong, own)
    # a library's cuts are harmless as a rule (the maximum inside a softmax); what is proven is proven all the same
    return found if found is not None or len(own) == len(evidence.cuts) else _among(evidence, wrong, evidence.cuts)


def _among(evidence: Evidence, wrong: Sequence[str], listed: Sequence[Cut]) -> Blamed | None:
    lines = _by_line(listed)
    if not lines:
        return None
    removed = fewest(evidence, wrong, lines, evidence.without)
    if removed is not None:
        cuts, tried, names = removed
        evidence.place_by(names, tried.gradients)
        shown = f"With {_it(cuts)} removed, the analytic gradient agrees with the numeric one."
        return Blamed(cuts, shown, tried.gradients, names)
    every = [cut for line in lines for cut in line]
    held = evidence.holding(every)
    if held is None or not agree(held, wrong):
        return None
    alone = [line for line in lines[:_MOST_HELD] if (m := evidence.holding(line)) is not None and agree(m, wrong)]
    cuts = alone[0] if alone else every
    cutting = "it cuts" if len(cuts) == 1 else "they cut"
    seen = f"agree: an error above {number(held.resolution)} would have been seen"
    if not held.resolution:  # nothing is left that moves the loss: no error has a size
        seen = "are both zero"
    shown = f"With the values that {cutting} off held at the base point, analytic and numeric {seen}."
    return Blamed(cuts, shown, None, wrong)


def _by_line(cuts: Sequence[Cut]) -> list[list[Cut]]:
    lines: dict[tuple[str, int], list[Cut]] = {}
    for cut in cuts:
        lines.setdefault((cut.path, cut.line), []).append(cut)
    return list(lines.values())


def _finding(evidence: Evidence, blamed: Blamed) -> Finding:
    cuts, shown, full, wrong = blamed
    names = ", ".join(wrong)
    numbers = {"executions": float(sum(cut.executions for cut in cuts))}
    share = ""
    if full is not None:
        numbers["removed"] = _removed_share(evidence.baseline.gradients, full, wrong)
        size = f"{_percent(numbers['removed'])} of what it is without {_it(cuts)}"
        share = f", which is zero without {_it(cuts)}" if np.isnan(numbers["removed"]) else f", by {size}"
    verb = "changed" if all(cut.kind == "hook" for cut in cuts) else "cut"
    alone = len({(cut.path, cut.line) for cut in cuts}) == 1
    start = f"The gradient is {verb} by " if alone else f"{len(cuts)} cuts share the gap: "
    return Finding(
        code="GA101",
        title=f"cut at {', '.join(dict.fromkeys(cut.place for cut in cuts))}",
        confidence="proven",
        sentence=f"{start}{', '.join(map(times, cuts))}. That changes the gradient of {names}{share}.",
        evidence=shown,
        remedy=MEANT if accepted(evidence, cuts) else _remedy(cuts),
        parameters=tuple(wrong),
        numbers=numbers,
    )


def times(cut: Cut) -> str:
    """A cut, and how often it ran."""
    return f"{cut} ({'once' if cut.executions == 1 else f'{cut.executions:,} times'})"


def accepted(evidence: Evidence, cuts: Sequence[Cut]) -> bool:
    """Whether the user means all of them."""
    return all(any(cut.matches(glob) for glob in evidence.options.intended) for cut in cuts)


def if_meant(cuts: Sequence[Cut]) -> str:
    """How to accept them."""
    places = ", ".join(f'"{place}"' for place in dict.fromkeys(cut.place for cut in cuts))
    return f"pass intended=[{places}], and the report judges the gradient so"


def _remedy(cuts: Sequence[Cut]) -> str:
    if all(cut.kind == "hook" for cut in cuts):
        return (
            "If this is meant (clipping, a reversal): what an optimiser is given is no gradient of this loss; audit "
            "without the hook to judge what it is given itself. If not: remove the hook."
        )
    return (
        "If this is meant (a target, a truncation, a straight-through estimator): the backward pass is right given it; "
        f"{if_meant(cuts)}. If not: remove it, or compute inside the graph what it cuts off."
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
