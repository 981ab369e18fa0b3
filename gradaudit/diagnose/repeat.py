"""Causes in time between calls: the same point gives different numbers."""

from __future__ import annotations

import numpy as np

from gradaudit.diagnose.evidence import Evidence
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["random_gradient", "random_loss"]


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


def random_gradient(evidence: Evidence) -> Finding | None:
    """GA802: the loss repeats itself, the gradient does not."""
    baseline = evidence.baseline
    if baseline.gradient_repeatable or not baseline.repeatable:
        return None
    ratios = [
        float(np.linalg.norm(b) / np.linalg.norm(a))
        for a, b in zip(baseline.gradients.values(), baseline.again.values(), strict=True)
        if a is not None and b is not None and np.linalg.norm(a) > 0
    ]
    doubled = bool(ratios) and all(abs(ratio - 2) < 1e-3 for ratio in ratios)
    why = " The second is twice the first: gradients are accumulated." if doubled else ""
    return Finding(
        code="GA802",
        title="the gradient does not repeat itself",
        confidence="consistent",
        sentence=f"Two gradients at the same parameters differ, while the loss is the same.{why}",
        remedy="Clear accumulated gradients before each backward pass (zero_grad)."
        if doubled
        else "Fix what differs between two backward passes: random masks drawn again, a cache, a buffer.",
    )
