"""Causes that scale: the gradient is the derivative times one number."""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import eps, global_norm
from gradaudit.compare import Comparison, Precision, Verdict
from gradaudit.diagnose.evidence import Evidence, least_squares_ratio
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["clipped_by_norm", "clipped_by_value", "common_factor", "constant_ratio", "decayed", "named", "sign"]

#: A factor is named by a size when it equals it this closely.
_NAMED = 2e-3
#: A factor this close to 1 is an error somewhere else that a factor happens to fit.
_NO_FACTOR = 1e-4
#: One line always fits one number; a second one does not by chance, unless there is only one entry.
_LEAST_LINES = 2
#: Thresholds that people choose: these times a power of ten. Met this closely they are no chance. 1 and 10: rounding
#: may leave a threshold on either side of its power of ten.
_ROUND = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 8.0, 10.0)
_MET = 1e-5
#: Nearer to 1 than this a factor needs more digits.
_NEAR = 0.02
#: By so many bounds what is explained must exceed what is not known.
_CLEARLY = 10.0
#: Of mixed precision: powers of two.
_LOSS_SCALES = tuple(2**k for k in range(7, 25))


def sign(evidence: Evidence) -> Finding | None:
    """GA303: analytic = -numeric."""
    found = common_factor(evidence)
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
    found = common_factor(evidence)
    if found is None or abs(found[1] + 1) <= _NAMED:
        return None
    names, factor = found
    by_size = named(factor, evidence.sizes)
    return Finding(
        code="GA301",
        title=f"constant factor {_digits(factor)}",
        confidence="consistent",
        sentence=f"The gradient of {', '.join(names)} is the derivative times {_digits(factor)}{by_size}, in every "
        f"direction measured.",
        remedy="Look for a mean taken twice or a sum for a mean, a loss scale not divided out, a learning rate or "
        "weight inside the backward pass.",
        parameters=tuple(names),
        numbers={"factor": factor},
    )


def clipped_by_norm(evidence: Evidence) -> Finding | None:
    """GA304: one factor below 1 for all tensors, and what is left has a round norm."""
    common = common_factor(evidence)
    if common is None or not 0 < common[1] < 1:
        return None
    names, factor = common
    gradients = evidence.baseline.gradients
    if any(np.any(g) for name, g in gradients.items() if g is not None and name not in names):
        return None
    norm = global_norm(gradients)
    limits = {1: plain} if (plain := _round(norm)) is not None else {s: _round(norm * s) for s in _LOSS_SCALES}
    found = [(abs(np.log(limit)), scale, limit) for scale, limit in limits.items() if limit is not None]
    if not found:
        return None
    # powers of two are round numbers to each other: the limit nearest to 1 is what people choose
    _, scale, limit = min(found)
    scaled = f", times {scale:,}," if scale > 1 else ""
    clipped = f"clipped from {number(norm * scale / factor)}"
    return Finding(
        code="GA304",
        title=f"clipped by norm {number(limit)}" + (f", while scaled by {scale:,}" if scale > 1 else ""),
        confidence="consistent",
        sentence=f"Every tensor's gradient is the derivative times {number(factor)}, and together they have{scaled} "
        f"the norm {number(limit)}: {clipped}{', before the loss scale was divided out' if scale > 1 else ''}.",
        remedy="Audit the gradient before it is clipped; or, if this is the loss scaler's gradient, unscale before "
        "you clip.",
        parameters=tuple(names),
        numbers={"factor": factor, "limit": limit, "scale": float(scale)},
    )


def decayed(evidence: Evidence) -> Finding | None:
    """GA306: the gradient is the derivative and one multiple of the parameters: weight decay, or a lacking penalty."""
    names = evidence.wrong()
    looks = [c for name in names for c in evidence.lines([name])]
    parameters = {name: p for name, p in evidence.model.parameters().items() if name in names}
    pairs = [(c, c.direction.dot(parameters)) for c in looks]
    square = sum(along * along for _, along in pairs)
    if min(len(pairs), sum(p.size for p in parameters.values())) < _LEAST_LINES or square == 0:
        return None
    decay = sum((c.analytic - c.numeric) * along for c, along in pairs) / square
    tolerance = Precision(analytic=_precision(evidence), numeric=0.0).tolerance
    left = [(abs(c.analytic - c.numeric - decay * along), c, decay * along) for c, along in pairs]
    # what is explained must be more than what is allowed
    explained = all(gap <= c.bound + tolerance * abs(part) for gap, c, part in left)
    if not explained or not any(abs(part) > _CLEARLY * c.bound for _, c, part in left):
        return None
    size, lacks = number(abs(decay)), decay < 0
    sign, penalty = "plus", ""
    remedy = (
        "Weight decay of an optimiser is no part of the loss: audit the gradient without it, or add "
        "decay / 2 * |parameters|^2 to the loss."
    )
    if lacks:
        sign, penalty = "minus", f": the loss has a penalty {size} / 2 * |parameters|^2 that the gradient lacks"
        remedy = (
            f"Add {size} * parameters to the gradient, or look for a penalty whose derivative lost a part, as the 2 of "
            f"a square."
        )
    return Finding(
        code="GA306",
        title=f"L2 penalty {size} in the loss only" if lacks else f"weight decay {size} in the gradient only",
        confidence="consistent",
        sentence=f"The gradient of {', '.join(names)} is the derivative {sign} {size} times the parameters{penalty}.",
        evidence=f"One multiple fits all {len(pairs)} looks.",
        remedy=remedy,
        parameters=tuple(names),
        numbers={"decay": decay},
    )


def clipped_by_value(evidence: Evidence) -> Finding | None:
    """GA305: several entries have exactly the same, round, largest size."""
    gradients = evidence.baseline.gradients
    found: dict[str, tuple[float, int, int]] = {}
    for name in evidence.wrong():
        g = gradients[name]
        if g is None or not np.isfinite(g).all() or not np.any(g):
            continue
        size = np.abs(g)
        limit, n = _round(float(size.max())), int((size == size.max()).sum())
        if limit is not None and 1 < n < g.size and _right_below(evidence, name, limit):
            found[name] = limit, n, g.size
    if not found or len({limit for limit, _, _ in found.values()}) > 1:
        return None
    limit = next(iter(found.values()))[0]
    shown = ", ".join(f"{n} of {size:,} entries of {name}" for name, (_, n, size) in found.items())
    return Finding(
        code="GA305",
        title=f"clipped by value {number(limit)}",
        confidence="consistent",
        sentence=f"The largest size is exactly {number(limit)} in {shown}, and none is larger.",
        remedy="Audit the gradient before it is clipped.",
        parameters=tuple(found),
        numbers={"limit": limit},
    )


def _right_below(evidence: Evidence, name: str, limit: float) -> bool:
    """Whether the entries that were read and not clipped are right."""
    read = [c for c in evidence.lines([name]) if c.direction.entry is not None]
    return all(c.verdict is not Verdict.DISAGREE for c in read if abs(c.analytic) / c.direction.length < limit)


def _round(size: float) -> float | None:
    """The round number that a size is, if it is one."""
    if not size > 0 or not np.isfinite(size):
        return None
    power = 10.0 ** np.floor(np.log10(size))
    return next((float(r * power) for r in _ROUND if abs(size / (r * power) - 1) <= _MET), None)


def common_factor(evidence: Evidence) -> tuple[list[str], float] | None:
    """The wrong tensors and their common factor, if there is one, neither 0 nor 1."""
    if evidence.total is None:
        return None
    names = evidence.wrong()
    lines = evidence.lines(names)
    factor = least_squares_ratio(lines)
    if all(abs(c.numeric) <= c.bound for c in lines):
        return None  # of nothing
    tolerance = Precision(analytic=_precision(evidence), numeric=0.0).tolerance
    n_entries = sum(spec.size for spec in evidence.baseline.specs if spec.name in names)
    if min(len(lines), n_entries) < _LEAST_LINES or not abs(factor) > 0 or abs(factor - 1) <= _NO_FACTOR:
        return None
    sizes = [c.direction.norm(evidence.baseline.gradients) for c in lines]
    fits = all(_fits(c, factor, tolerance, size) for c, size in zip(lines, sizes, strict=True))
    return (names, factor) if fits else None


def _fits(c: Comparison, factor: float, tolerance: float, size: float) -> bool:
    """Whether analytic = factor * numeric along a line; ``size`` is what the analytic value is if nothing cancels."""
    allowed = max(1.0, abs(factor)) * c.bound + tolerance * max(abs(factor), 1.0) * c.scale
    # measured against what is left of the scaled derivative, or a small factor would fit everything
    small = abs(factor) * (c.bound + tolerance * abs(c.numeric)) + tolerance * abs(c.analytic)
    # what bounds the numeric value is more than a gradient that was scaled down to almost nothing
    own = c.bound if abs(factor) > tolerance else tolerance * size
    return abs(c.analytic - factor * c.numeric) <= min(allowed, small + own)


def _precision(evidence: Evidence) -> float:
    return max((eps(g.dtype) for g in evidence.baseline.gradients.values() if g is not None), default=0.0)


def _digits(factor: float) -> str:
    """A factor near 1 by what it differs from 1."""
    return f"{factor:.7g}" if abs(factor - 1) < _NEAR else number(factor)


def named(factor: float, sizes: dict[str, int]) -> str:
    """A factor by the model's own sizes, in brackets; empty where it is none of them."""
    for name, size in sizes.items():
        if size > 1 and abs(factor / size - 1) <= _NAMED:
            return f" (= {name}, {size:,})"
        if size > 1 and abs(factor * size - 1) <= _NAMED:
            return f" (= 1 / {name}, {size:,})"
    return ""
