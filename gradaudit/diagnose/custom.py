"""Causes in derivatives written by hand: each is compared with what it is the derivative of, then replaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradaudit.arrays import eps
from gradaudit.diagnose.evidence import Evidence, Tried
from gradaudit.diagnose.factor import common_factor, named
from gradaudit.diagnose.greedy import fewest
from gradaudit.render.to_text import number
from gradaudit.report import Finding
from gradaudit.sites import CustomRule

__all__ = ["wrong_rule"]

#: Rounding of a right rule, relative, in double and in single precision.
_ROUNDING, _ROUNDING_SINGLE = 1e-6, 1e-3
_SINGLE_EPS = 1e-12


def wrong_rule(evidence: Evidence) -> Finding | None:
    """GA501: a hand-written backward rule is not the derivative of its own forward."""
    wrong = evidence.wrong()
    rules = evidence.rules if wrong else ()
    if not rules:
        return None
    single = any(g is not None and eps(g.dtype) > _SINGLE_EPS for g in evidence.baseline.gradients.values())
    tolerance = _ROUNDING_SINGLE if single else _ROUNDING
    off = sorted((rule for rule in rules if rule.error > tolerance), key=lambda rule: -rule.error)
    unknown = [rule for rule in rules if np.isnan(rule.error)]
    found = fewest(evidence, wrong, [[rule] for rule in (*off, *unknown)], evidence.replacing)
    if found is not None:
        blamed, tried, names = found
        evidence.place_by(names, tried.gradients)
        common = common_factor(evidence)
        times = (
            "" if common is None else f" to the derivative times {number(common[1])}{named(common[1], evidence.sizes)}"
        )
        return _finding(names, blamed, tried, times)
    return _finding(wrong, off, None) if off else None


def _finding(wrong: Sequence[str], rules: Sequence[CustomRule], tried: Tried | None, times: str = "") -> Finding:
    several = len(rules) > 1
    them, its = ("them", "their own forwards") if several else ("it", "its own forward")
    return Finding(
        code="GA501",
        title=f"wrong backward of {', '.join(f'{rule.name} at {rule.place}' for rule in rules)}",
        confidence="consistent" if tried is None else "proven",
        sentence=f"{' '.join(map(_off, rules))} That changes the gradient of {', '.join(wrong)}{times}.",
        evidence=f"With {them} replaced by the derivative of {its}, the analytic gradient agrees with the numeric one."
        if tried is not None
        else f"Compared with the derivative of {its} on the inputs that it saw. That alone does not explain the gap.",
        remedy="If this is meant (a surrogate or straight-through gradient, a reversal), it is the derivative of "
        "another function than the loss. If not: correct the rule; gradaudit compares it with the derivative of its "
        "forward.",
        parameters=tuple(wrong) if tried is not None else (),
        numbers={"error": max(rule.error for rule in rules)},
    )


def _off(rule: CustomRule) -> str:
    times = "once" if rule.executions == 1 else f"{rule.executions:,} times"
    known = not np.isnan(rule.error)
    by = f"is off by {number(rule.error)}, relative, in input {rule.argument}" if known else "is not its derivative"
    return f"The rule of {rule.kind} {rule.name} at {rule.place} (run {times}) {by}."
