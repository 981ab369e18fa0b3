"""Causes in a training step, each proven by running the step differently."""

from __future__ import annotations

from gradaudit.diagnose.evidence import Evidence
from gradaudit.diagnose.factor import common_factor, named
from gradaudit.diagnose.greedy import agree
from gradaudit.render.to_text import number
from gradaudit.report import Finding

__all__ = ["clipped", "forgotten", "leftover", "unequal"]


def unequal(evidence: Evidence) -> Finding | None:
    """GA302: unequal micro-batches that count the same."""
    return _proven(
        evidence,
        "weights",
        "GA302",
        "a mean of means over unequal micro-batches",
        "With each micro-batch weighted by its rows, the gradient agrees with the numeric one.",
        "Weight each micro-batch's mean by its share of the rows, or sum the losses and divide by all rows.",
    )


def clipped(evidence: Evidence) -> Finding | None:
    """GA307: the step clips the gradient."""
    return _proven(
        evidence,
        "clipped",
        "GA307",
        "clipped in the step",
        "With clipping left out, the gradient agrees with the numeric one.",
        "Call scaler.unscale_(optimizer) before clipping, if the gradient is scaled. If the clip is meant, audit the "
        "step without the call.",
    )


def forgotten(evidence: Evidence) -> Finding | None:
    """GA805: the gradient of the iteration before is still there."""
    return _proven(
        evidence,
        "forgotten",
        "GA805",
        "zero_grad() forgotten",
        "From empty gradients, the first iteration agrees with the numeric gradient.",
        "Call optimizer.zero_grad() in each iteration.",
    )


def leftover(evidence: Evidence) -> Finding | None:
    """GA806: something was in .grad before the step."""
    return _proven(
        evidence,
        "leftover",
        "GA806",
        "left in .grad before the step",
        "From empty gradients, the step agrees with the numeric gradient.",
        "Call zero_grad() between the other loss and this one.",
    )


def _proven(evidence: Evidence, kind: str, code: str, title: str, proof: str, remedy: str) -> Finding | None:
    wrong = evidence.wrong()
    for variant in (evidence.variants or ()) if wrong else ():
        tried = evidence.of(variant) if variant.kind == kind else None
        if tried is None or not agree(tried.measured, wrong):
            continue
        common = common_factor(evidence)
        factor = "" if common is None else f", times {number(common[1])}{named(common[1], evidence.sizes)}"
        return Finding(
            code=code,
            title=title + (f", {variant.detail}" if kind == "clipped" and variant.detail else ""),
            confidence="proven",
            sentence=f"That changes the gradient of {', '.join(wrong)}{factor}."
            + (f" {variant.detail[0].upper()}{variant.detail[1:]}." if variant.detail else ""),
            evidence=proof,
            remedy=remedy,
            parameters=tuple(wrong),
            numbers={} if common is None else {"factor": common[1]},
        )
    return None
