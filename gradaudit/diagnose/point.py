"""Causes at this point: the gradient is no number where the loss is one."""

from __future__ import annotations

import numpy as np

from gradaudit.diagnose.evidence import Evidence
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["non_finite"]


def non_finite(evidence: Evidence) -> Finding | None:
    """GA604: NaN or infinite entries, while the loss is finite."""
    gradients = evidence.baseline.gradients
    bad = {n: int((~np.isfinite(g)).sum()) for n, g in gradients.items() if g is not None}
    bad = {name: count for name, count in bad.items() if count}
    if not bad:
        return None
    counts = ", ".join(f"{n} ({k} of {g.size})" for n, k in bad.items() if (g := gradients[n]) is not None)
    smooth = evidence.total is not None and any(
        line.estimate.bound < abs(line.estimate.value) for line in evidence.total.lines if line.probe.tensor in bad
    )
    seen = " The numeric derivative is finite there." if smooth else ""
    return Finding(
        code="GA604",
        title="gradient not finite",
        confidence="consistent",
        sentence=f"The loss is {number(float(evidence.baseline.loss))}, but the gradient has NaN or infinite entries: "
        f"{counts}.{seen}",
        remedy="Look for a branch that is not selected (where, max) and is not finite itself, a norm or square root "
        "at 0, a log of 0: mask the argument, not the result.",
        parameters=tuple(bad),
    )
