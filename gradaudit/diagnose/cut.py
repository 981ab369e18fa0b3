"""Causes in the graph: a parameter that the loss depends on gets no gradient."""

from __future__ import annotations

import numpy as np

from gradaudit.diagnose.evidence import Evidence
from gradaudit.report import Finding

__all__ = ["missing"]


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
