"""Causes in time between calls: the same point gives different numbers."""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import Array, Gradients, eps
from gradaudit.compare import Verdict
from gradaudit.diagnose.evidence import Evidence
from gradaudit.direction import Point, displace, random_direction
from gradaudit.measure.plan import scales
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["kept", "lagging", "random_gradient", "random_loss"]

#: A loss whose second difference is this share of its first, and of itself, is no straight line.
_BENT = 1e-3


def random_loss(evidence: Evidence) -> Finding | None:
    """GA801: three losses at the same parameters differ by more than rounding."""
    baseline = evidence.unfixed or evidence.baseline
    if baseline.repeatable:
        return None
    fixed = evidence.unfixed is not None
    return Finding(
        code="GA801",
        title="the loss does not repeat itself",
        confidence="proven",
        sentence=f"Three losses at the same parameters differ by {number(baseline.loss_spread)} "
        f"(loss {number(float(baseline.loss))}): it is no function of the parameters"
        f"{', unless its random numbers are held' if fixed else ', so it has no derivative'}.",
        evidence="With the same random numbers drawn at every evaluation the losses are equal; the gradient was judged "
        "so."
        if fixed
        else "Putting back the global random generators before every evaluation does not help.",
        remedy="Fix the random numbers inside the loss (dropout, sampling, shuffling), or switch to evaluation mode.",
        numbers={"spread": baseline.loss_spread},
    )


def lagging(evidence: Evidence) -> Finding | None:
    """GA803: each call returns the gradient of the call before."""
    base = evidence.baseline
    if not base.repeatable or base.gradient_repeatable:
        return None
    second = evidence.judged(base.again)
    there = evidence.elsewhere() if second is not None and second.verdict is Verdict.AGREE else None
    if there is None or not _equal(there[0], base.again) or _equal(*there):
        return None
    return Finding(
        code="GA803",
        title="gradient of the call before",
        confidence="proven",
        sentence="Each call returns the gradient of the parameters of the call before: the second one at this point is "
        "right, and the next, at other parameters, is still the same.",
        remedy="Look for a gradient that is read before the backward pass has filled it, a cached result, an "
        "asynchronous update.",
        parameters=tuple(base.gradients),
    )


def kept(evidence: Evidence) -> Finding | None:
    """GA804: the gradient is the same everywhere, while the slope of the loss is not."""
    wrong, gradients = evidence.wrong(), evidence.baseline.gradients
    sizes = [np.linalg.norm(g) for name in wrong if (g := gradients[name]) is not None]
    if not np.isfinite(sizes).all() or not np.any(sizes):
        return None
    there = evidence.elsewhere()
    if there is None or not all(_same(there[0][name], gradients[name]) for name in gradients) or not _curved(evidence):
        return None
    return Finding(
        code="GA804",
        title="gradient that does not follow the parameters",
        confidence="consistent",
        sentence=f"The gradient of {', '.join(wrong)} is the same to the last bit at parameters a tenth away, where "
        "the slope of the loss is another: it was computed once, at other parameters, and kept.",
        remedy="Look for parameters that were copied once (a constant baked into a compiled function, a closure) and "
        "for a cached gradient.",
        parameters=tuple(wrong),
    )


def _curved(evidence: Evidence) -> bool:
    """Whether the slope of the loss changes within a tenth of the parameters' size, so that its gradient must."""
    parameters = evidence.model.parameters()
    direction = random_direction("elsewhere", scales(parameters), evidence.options.seed)
    try:
        evidence.budget.take(2, "diagnosing")
        up, down = (float(evidence.model.loss(displace(parameters, Point(direction, t)))) for t in (0.1, -0.1))
    except Exception:  # noqa: BLE001  # outside the domain, or out of budget
        return False
    bend = abs(up + down - 2 * float(evidence.baseline.loss))
    return bool(bend > _BENT * abs(up - down) and bend > _BENT * abs(float(evidence.baseline.loss)))


def _equal(ones: Gradients, others: Gradients) -> bool:
    """Within reordered sums."""
    pairs = [(g, others[name]) for name, g in ones.items() if name in others]
    return all(
        g is h if g is None or h is None else np.allclose(g, h, rtol=1e4 * eps(g.dtype), atol=0) for g, h in pairs
    )


def _same(one: Array | None, other: Array | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def random_gradient(evidence: Evidence) -> Finding | None:
    """GA802: the loss repeats itself, the gradient does not."""
    baseline = evidence.baseline
    lags = evidence.explained.issuperset(baseline.gradients)
    if baseline.gradient_repeatable or not baseline.repeatable or lags:
        return None
    ratios = [
        float(np.linalg.norm(b) / np.linalg.norm(a))
        for a, b in zip(baseline.gradients.values(), baseline.again.values(), strict=True)
        if a is not None and b is not None and np.linalg.norm(a) > 0
    ]
    doubled = bool(ratios) and all(abs(ratio - 2) < 1e-3 for ratio in ratios)
    grown = not doubled and _grown(evidence)
    why = " The second is twice the first: gradients are accumulated." if doubled else ""
    if grown:
        why = " The second is the first plus the derivative: each call adds to what earlier calls left."
    return Finding(
        code="GA802",
        title="the gradient does not repeat itself",
        confidence="proven" if grown else "consistent",
        sentence=f"Two gradients at the same parameters differ, while the loss is the same.{why}",
        remedy="Clear accumulated gradients before each backward pass (zero_grad)."
        if doubled or grown
        else "Fix what differs between two backward passes: random masks drawn again, a cache, a buffer.",
        parameters=tuple(evidence.wrong()) if grown else (),
    )


def _grown(evidence: Evidence) -> bool:
    """Whether what the second call added is the derivative."""
    base = evidence.baseline
    pairs = {name: (g, base.again[name]) for name, g in base.gradients.items()}
    added = {name: None if g is None or again is None else again - g for name, (g, again) in pairs.items()}
    judged = evidence.judged(added)
    moved = any(g is not None and np.any(g) for g in added.values())
    return moved and judged is not None and judged.verdict is Verdict.AGREE
