"""The verdict on each port."""

from __future__ import annotations

from collections.abc import Mapping

from gradaudit.compare import Verdict
from gradaudit.options import AuditOptions
from gradaudit.ports.computed import Computed, Gap, Handed, computed
from gradaudit.ports.experiments import explained
from gradaudit.report import AuditReport, Port

__all__ = ["compared"]

_LISTED = 3


def compared(models: Mapping[str, Handed], parts: Mapping[str, AuditReport], options: AuditOptions) -> tuple[Port, ...]:
    """Each port against the first model.

    Args:
        models: the first model, then its ports.
        parts: their own audits: whether each gradient is the derivative of its loss.
        options: seed and max_evaluations are used.
    """
    found = {name: computed(model, options) for name, model in models.items()}
    (first_name, first), *others = found.items()
    wrong = {name for name, part in parts.items() if part.verdict is Verdict.DISAGREE}
    ports = [_port(name, port, (first_name, first), wrong, options) for name, port in others]
    alone = len(others) > 1 and all(
        port.verdict is Verdict.DISAGREE and Gap(others[0][1], other).agrees
        for port, (_, other) in zip(ports, others, strict=True)
    )
    sentence = f"The others agree with one another: {first_name} is the one that differs." if alone else ""
    verdict = Verdict.DISAGREE if alone else Verdict.AGREE
    itself = Port(
        name=first_name,
        loss=first.loss,
        loss_difference=0.0,
        gradient_difference=0.0,
        verdict=verdict,
        sentence=sentence,
    )
    return (itself, *ports)


def _port(name: str, port: Computed, reference: tuple[str, Computed], wrong: set[str], options: AuditOptions) -> Port:
    first_name, first = reference
    gap = Gap(first, port)
    unjudged = wrong & {name, first_name}
    sentence = evidence = confidence = ""
    if gap.agrees:
        verdict = Verdict.AGREE if gap.resolved(options.significant) else Verdict.INCONCLUSIVE
    elif gap.losses_agree and unjudged:
        # the gradients do not belong to the losses: they tell nothing of the functions
        verdict = Verdict.INCONCLUSIVE
        sentence = f"The losses agree; the gradients differ, and that of {' and '.join(sorted(unjudged))} is wrong."
    else:
        verdict = Verdict.DISAGREE
        sentence = _difference(name, port, reference, gap, derivative=not unjudged)
        evidence, confidence = explained(name, first, port, derivative=not unjudged, options=options)
    return Port(
        name=name,
        loss=port.loss,
        loss_difference=gap.loss,
        gradient_difference=gap.gradient,
        verdict=verdict,
        sentence=sentence,
        evidence=evidence,
        confidence=confidence,
    )


def _difference(name: str, port: Computed, reference: tuple[str, Computed], gap: Gap, *, derivative: bool) -> str:
    first_name, first = reference
    own = " Each gradient is the derivative of its own loss." if derivative else ""
    if not gap.losses_agree:
        digits = 6 if gap.loss > 1e-4 else 12  # so many that they differ
        losses = f"{port.loss:.{digits}g} against {first.loss:.{digits}g}"
        return f"{name} is another function than {first_name}: at the same parameters the losses are {losses}.{own}"
    tensors = ", ".join(f"{n} by {gap.tensors[n]:.2g}" for n in gap.different[:_LISTED])
    return f"{name} is another function than {first_name}: the losses agree, but gradients differ ({tensors}).{own}"
