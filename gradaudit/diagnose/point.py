"""Causes at this point: no derivative here, or a gradient that is no number where the loss is one."""

from __future__ import annotations

import numpy as np

from gradaudit.diagnose.evidence import Evidence
from gradaudit.measure.judgement import Line
from gradaudit.measure.still import FARTHEST, N_FAR
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["constant", "jump", "kink", "non_finite", "straight_through"]


def non_finite(evidence: Evidence) -> Finding | None:
    """GA604: NaN or infinite entries, while the loss is finite."""
    gradients = evidence.baseline.gradients
    bad = {n: int((~np.isfinite(g)).sum()) for n, g in gradients.items() if g is not None}
    bad = {name: count for name, count in bad.items() if count}
    if not bad:
        return None
    counts = ", ".join(f"{n} ({k} of {g.size})" for n, k in bad.items() if (g := gradients[n]) is not None)
    smooth = evidence.total is not None and any(
        line.estimate.bound < 0.01 * abs(line.estimate.value)
        for line in evidence.total.lines
        if line.probe.tensor in bad
    )
    seen = " The numeric derivative is finite there." if smooth else ""
    origin = evidence.origin
    if origin is not None:
        already = ", whose own value is not finite there" if origin.forward else ""
        seen += f" It stops being finite in the backward pass of {origin}{already}."
    return Finding(
        code="GA604",
        title="gradient not finite" + (f", from {origin.operation} at {origin.place}" if origin is not None else ""),
        confidence="consistent" if origin is None else "proven",
        sentence=f"The loss is {number(float(evidence.baseline.loss))}, but the gradient has NaN or infinite entries: "
        f"{counts}.{seen}",
        evidence="" if origin is None else "Before it every gradient of the backward pass is finite.",
        remedy="Look for a branch that is not selected (where, max) and is not finite itself, a norm or square root "
        "at 0, a log of 0: mask the argument, not the result.",
        parameters=tuple(bad),
    )


def kink(evidence: Evidence) -> Finding | None:
    """GA601: the one-sided slopes differ; any value between them is a subgradient, and none is wrong."""
    at_kink = evidence.at_kink
    total = at_kink.total if at_kink is not None else evidence.total
    lines = [] if total is None else [line for line in total.lines if line.estimate.status == "kink"]
    if not lines:
        return None
    line = max(lines, key=lambda li: li.estimate.half_jump)
    slope, half = line.estimate.value, line.estimate.half_jump
    low, high = slope - half, slope + half
    analytic = line.probe.direction.dot((at_kink or evidence).baseline.gradients)
    beside = (
        " What that leaves open was judged at a point beside, all parameters moved by about a hundredth of their size."
    )
    reach = line.estimate.bound
    if min(abs(analytic - low), abs(analytic - high)) <= reach:
        place = "one of the two sides, and allowed"
    elif low < analytic < high:
        place = "between them, and allowed"
    else:
        place = "outside"
    return Finding(
        code="GA601",
        title="not differentiable here: a kink",
        confidence="proven",
        sentence=f"Along {line.probe.direction.label} the slopes of the loss are {number(low)} on one side and "
        f"{number(high)} on the other; the analytic value {number(analytic)} is {place}.",
        evidence="The even part of the loss is proportional to the step, down to the shortest steps."
        + (beside if at_kink is not None else ""),
        remedy="Nothing need be mended where the value is allowed: frameworks choose different ones (relu, max, abs, "
        "clip). To audit a derivative, move off the kink.",
        numbers={"low": low, "high": high, "analytic": analytic},
    )


def jump(evidence: Evidence) -> Finding | None:
    """GA602: the loss is not continuous at the base point."""
    lines = _of_status(evidence, "jump")
    if not lines:
        return None
    names = sorted({line.probe.tensor for line in lines if line.probe.tensor is not None})
    return Finding(
        code="GA602",
        title="not continuous here: a jump",
        confidence="proven",
        sentence=f"Along {lines[0].probe.direction.label} the limits of the loss from both sides differ, so it has no "
        f"derivative at this point.",
        remedy="Look for a comparison, a floor or a sign exactly at its threshold; move the parameters off it.",
        parameters=tuple(names),
    )


def straight_through(evidence: Evidence) -> Finding | None:
    """GA603: the loss is constant near the base point, the gradient is not zero."""
    flat = {line.probe.tensor for line in _of_status(evidence, "plateau")}
    names = [name for name in evidence.wrong() if name in flat]
    if not names:
        return None
    return Finding(
        code="GA603",
        title="the loss stands still, its gradient does not",
        confidence="consistent",
        sentence=f"The loss is constant while {', '.join(names)} moves a little, so its derivative is zero; the "
        f"gradient is not.",
        evidence="Losses at the shortest steps equal the base loss to the last bit; longer steps change it.",
        remedy="A straight-through or surrogate gradient of a rounding does this on purpose, and so does a cast to "
        "bfloat16 or float16 in mixed precision: audit without it. If this is none: look for round, floor, argmax or a "
        "comparison between these parameters and the loss.",
        parameters=tuple(names),
    )


def constant(evidence: Evidence) -> Finding | None:
    """GA704: the loss does not depend on what is audited."""
    total = evidence.total
    if total is None or total.still != "everywhere":
        return None
    names = tuple(total.verdicts)
    points = sum(line.estimate.evaluations for line in total.lines)
    of_them = names[0] if len(names) == 1 else f"any of the {len(names)} parameters that are audited"
    return Finding(
        code="GA704",
        title="the loss does not depend on the parameters",
        confidence="consistent",
        sentence=f"The loss does not depend on {of_them}, and its gradient is zero: there is nothing to compare.",
        evidence=f"It is the same, in every digit, at {points} points nearby, and at {N_FAR} more, up to {FARTHEST:g} "
        f"times the parameters' size away.",
        remedy="Look for a loss of another model or array than the one it is given, for a value that was computed or "
        "compiled before, or for a step whose result is always the same (a softmax over one class, a product with 0).",
        parameters=names,
    )


def _of_status(evidence: Evidence, status: str) -> list[Line]:
    return [] if evidence.total is None else [li for li in evidence.total.lines if li.estimate.status == status]
