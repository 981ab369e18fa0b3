"""Causes that scale: the gradient is the derivative times one number."""

from __future__ import annotations

from gradaudit.arrays import eps
from gradaudit.compare import Comparison, Precision
from gradaudit.diagnose.evidence import Evidence, least_squares_ratio
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["constant_ratio", "sign"]

#: A factor is named by a size when it equals it this closely.
_NAMED = 2e-3
#: A factor this close to 1 is an error somewhere else that a factor happens to fit.
_NO_FACTOR = 1e-4
#: One line always fits one number; a second one does not by chance, unless there is only one entry.
_LEAST_LINES = 2


def sign(evidence: Evidence) -> Finding | None:
    """GA303: analytic = -numeric."""
    found = _factor(evidence)
    if found is None or abs(found[1] + 1) > _NAMED:
        return None
    names, _ = found
    return Finding(
        code="GA303",
        title="opposite sign",
        confidence="consistent",
        sentence=f"The gradient of {', '.join(names)} is the derivative times -1, in every direction measured.",
        remedy="Look for a loss that is maximised in one place and minimised in the other, or a sign lost in a "
        "hand-written backward.",
        parameters=tuple(names),
        numbers={"factor": -1.0},
    )


def constant_ratio(evidence: Evidence) -> Finding | None:
    """GA301: analytic = c * numeric with one c for all wrong tensors."""
    found = _factor(evidence)
    if found is None or abs(found[1] + 1) <= _NAMED:
        return None
    names, factor = found
    named = _name(factor, evidence.sizes)
    return Finding(
        code="GA301",
        title=f"constant factor {number(factor)}",
        confidence="consistent",
        sentence=f"The gradient of {', '.join(names)} is the derivative times {number(factor)}{named}, in every "
        f"direction measured.",
        remedy="Look for a mean taken twice or a sum for a mean, a loss scale not divided out, a learning rate or "
        "weight inside the backward pass.",
        parameters=tuple(names),
        numbers={"factor": factor},
    )


def _factor(evidence: Evidence) -> tuple[list[str], float] | None:
    """The wrong tensors and their common factor, if there is one, neither 0 nor 1."""
    if evidence.total is None:
        return None
    names = evidence.wrong()
    lines = evidence.lines(names)
    factor = least_squares_ratio(lines)
    tolerance = Precision(analytic=_precision(evidence), numeric=0.0).tolerance
    n_entries = sum(spec.size for spec in evidence.baseline.specs if spec.name in names)
    if min(len(lines), n_entries) < _LEAST_LINES or not abs(factor) > tolerance or abs(factor - 1) <= _NO_FACTOR:
        return None
    return (names, factor) if all(_fits(c, factor, tolerance) for c in lines) else None


def _fits(c: Comparison, factor: float, tolerance: float) -> bool:
    allowed = max(1.0, abs(factor)) * c.bound + tolerance * max(abs(factor), 1.0) * c.scale
    # measured against what is left of the scaled derivative, or a small factor would fit everything
    small = abs(factor) * (c.bound + tolerance * abs(c.numeric)) + tolerance * abs(c.analytic)
    return abs(c.analytic - factor * c.numeric) <= min(allowed, small + c.bound)


def _precision(evidence: Evidence) -> float:
    return max((eps(g.dtype) for g in evidence.baseline.gradients.values() if g is not None), default=0.0)


def _name(factor: float, sizes: dict[str, int]) -> str:
    for name, size in sizes.items():
        if size > 1 and abs(factor / size - 1) <= _NAMED:
            return f" (= {name}, {size:,})"
        if size > 1 and abs(factor * size - 1) <= _NAMED:
            return f" (= 1 / {name}, {size:,})"
    return ""
