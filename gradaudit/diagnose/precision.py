"""What could not be decided, and what would settle it; and what disagrees without a cause that we know."""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import Array
from gradaudit.compare import Verdict
from gradaudit.diagnose.evidence import Evidence
from gradaudit.diagnose.greedy import agree
from gradaudit.render.to_text import number
from gradaudit.report import Finding

#: Noise of a float64 loss beyond this is none of its own rounding.
_COARSE_NOISE = 1e-12
_ROUNDING = 1e-16
_MOST_SHOWN = 3
#: A smaller relative difference is not worth a cause.
_ROUNDED = 1e-6

__all__ = ["low_precision_inside", "single_only", "unexplained", "unresolved"]


def unresolved(evidence: Evidence) -> Finding | None:
    """GA701: the numeric derivative is not known well enough for a verdict."""
    total = evidence.total
    if total is None or total.still:  # there is nothing to resolve
        return None
    jumps = {line.probe.tensor for line in total.lines if line.estimate.status == "jump"}
    open_ = [name for name, verdict in total.verdicts.items() if verdict is Verdict.INCONCLUSIVE]
    names = [name for name in open_ if name not in jumps]
    if not names:
        return None
    resolutions = {n: total.resolutions[n] for n in names}
    coarsest = max(resolutions, key=lambda n: resolutions[n])
    left = any(line.estimate.status == "left the domain" for line in total.lines if line.probe.tensor in names)
    if not total.complete:
        way, settle = "the budget ended first", "a larger max_evaluations"
    elif any(line.estimate.status == "kink" for line in total.lines if line.probe.tensor in names):
        way = "a kink at this point allows slopes that an error beside it could hide among"
        settle = "a base point off the kink, for example the parameters moved by a hundredth of their size"
    elif left or not np.isfinite(resolutions[coarsest]):
        way = "the loss is not finite, or raises, on one side or both sides of these parameters"
        settle = "a base point further inside the domain"
    elif _rounded(evidence, coarsest):
        way = f"the {evidence.baseline.loss.dtype} gradient differs from its float64 twin's, elsewhere in another way"
        settle = "the gradient in float64, or a formula that amplifies rounding less"
    else:
        way = (
            f"the loss {number(float(evidence.baseline.loss))} is known to its own rounding only ({total.source.name})"
        )
        settle = "a float64 copy of the model, or a loss without its large constant part"
    return Finding(
        code="GA701",
        title="not resolved at this precision",
        confidence="proven",
        sentence=f"{', '.join(names)}: {way}; {_invisible(resolutions[coarsest], coarsest)}.",
        remedy=f"What would settle it: {settle}.",
        parameters=tuple(names),
        numbers={"resolution": resolutions[coarsest]},
    )


def _rounded(evidence: Evidence, name: str) -> bool:
    """Whether the gradient's own rounding is what hides errors, not that of the numbers."""
    total = evidence.total
    if total is None or total.source.reference is None:
        return False
    pairs = zip(total.lines, total.comparisons, strict=True)
    return any(c.bound > 2 * line.estimate.bound for line, c in pairs if line.probe.tensor == name)


def _invisible(resolution: float, name: str) -> str:
    if np.isfinite(resolution):
        return f"relative errors below {number(resolution)} are invisible for {name}"
    return f"nothing can be said of {name}"


def unexplained(evidence: Evidence) -> Finding | None:
    """GA901: analytic and numeric differ, and no known pattern fits."""
    names = evidence.wrong()
    total = evidence.total
    somewhere = not names and not evidence.explained and total is not None and total.verdict is Verdict.DISAGREE
    if total is None or not (names or somewhere):
        return None
    lines = evidence.lines(names) or total.of(None)
    largest = max(lines, key=lambda c: c.relative_error)
    return Finding(
        code="GA901",
        title="unexplained",
        confidence="unexplained",
        sentence=f"The gradient of {', '.join(names) or 'the whole model'} is not the derivative, and no known pattern "
        f"fits. The largest relative error is {number(largest.relative_error)}, along {largest.direction.label}."
        f"{_left(evidence)}",
        remedy="Compare the entries in report[name].analytic and .numeric; audit parts of the model on their own.",
        parameters=tuple(names),
        numbers={"relative_error": largest.relative_error},
    )


def _left(evidence: Evidence) -> str:
    """What was seen on the way and could not be shown to be the cause."""
    cuts = [str(cut) for cut in evidence.cuts if not cut.library]
    seen = cuts + [str(rule) for rule in evidence.rules if not rule.library]
    more = f" and {len(seen) - _MOST_SHOWN} more" if len(seen) > _MOST_SHOWN else ""
    return f" Seen, and not shown to explain it: {', '.join(seen[:_MOST_SHOWN])}{more}." if seen else ""


def single_only(evidence: Evidence) -> Finding | None:
    """GA703: the same code in float64 has the right gradient."""
    total = evidence.total
    if total is None or total.source.reference is None or total.source.narrow or evidence.variants is not None:
        # a narrower format may be meant; the twin of a training step has the gradient of the objective, not the step's
        return None
    reference, gradients, wrong = total.source.reference, evidence.baseline.gradients, evidence.wrong()
    off: dict[str, float] = {}
    for name, verdict in total.verdicts.items():
        g, h = gradients[name], reference[name]
        if g is not None and h is not None and verdict is not Verdict.AGREE and name not in evidence.explained:
            off[name] = _apart(g, h)
    related = [] if wrong else [name for name in total.source.related if name in off]
    # it must be the float32 gradient itself that differs, and not only its verdict
    names = [name for name, d in off.items() if d >= (_ROUNDED if name in [*wrong, *related] else total.significant)]
    measured = evidence.judged(reference) if names and set(wrong) <= set(names) else None
    if measured is None or not agree(measured, names):
        return None
    dtype = evidence.baseline.loss.dtype
    by = ", ".join(f"{name} is off by {number(off[name])}" for name in names)
    more = "" if wrong else " At points nearby it is off by another amount: noise, as of a narrower format."
    if related:
        more = f" A part of it stays the same at points nearby: an error, in one of {', '.join(related)}."
        more += " Which of them cannot be told, for rounding moves them together."
    return Finding(
        code="GA703",
        title=f"{'wrong' if wrong or related else 'noisy'} in {dtype} only",
        confidence="proven",
        sentence=f"Beside the gradient of its float64 twin, that of {by}, relative, which is more than {dtype} has to "
        f"round.{more}",
        evidence="The same code in float64 has the right gradient: it agrees with the numeric one.",
        remedy="Look for half precision or TF32 inside, a sum in a narrow dtype, a difference of large numbers, or a "
        "branch for this dtype with another rule.",
        parameters=tuple(names),
        numbers={"relative_error": max(off[name] for name in names)},
    )


def _apart(one: Array, other: Array) -> float:
    size = float(np.linalg.norm(np.asarray(other, np.float64)))
    difference = float(np.linalg.norm(np.asarray(one, np.float64) - np.asarray(other, np.float64)))
    return difference / size if size > 0 else float("inf") if difference > 0 else 0.0


def low_precision_inside(evidence: Evidence) -> Finding | None:
    """GA702: the loss repeats itself, but is known to fewer digits than its dtype has."""
    total = evidence.total
    loss = evidence.baseline.loss
    if total is None or not total.lines or "float64" not in (total.source.dtype, str(loss.dtype)):
        return None
    base = float(loss)
    seen = [line.estimate.sigma for line in total.lines if line.full and np.isfinite(line.estimate.bound)]
    noise = max(seen, default=0.0) / max(1.0, abs(base))
    if noise <= _COARSE_NOISE:
        return None
    return Finding(
        code="GA702",
        title="low precision inside the loss",
        confidence="consistent",
        sentence=f"The losses are float64, but they are known to about {number(noise)} of their size only "
        f"(rounding would leave {number(_ROUNDING)}): something inside computes with fewer digits.",
        remedy="Look for float32, bfloat16 or float16 inside (data, weights, a cast, a default dtype), or for an "
        "iterative or adaptive solver that stops early.",
        numbers={"relative_noise": noise},
    )
