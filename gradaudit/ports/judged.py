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
#: The difference that matters, by default, as for gradients.
_SIGNIFICANT, _SIGNIFICANT_SINGLE, _SINGLE_EPS = 1e-3, 1e-2, 1e-12


def compared(models: Mapping[str, Handed], parts: Mapping[str, AuditReport], options: AuditOptions) -> tuple[Port, ...]:
    """Each port against the first model.

    Args:
        models: the first model, then its ports.
        parts: their own audits: whether each gradient is the derivative of its loss.
        options: seed and max_evaluations are used.
    """
    found = {name: computed(model, options) for name, model in models.items()}
    (first_name, first), *others = found.items()
    ports = [_port((first_name, first), (name, port), parts, options) for name, port in others]
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
        evaluations=first.budget.evaluations,
        gradients=first.budget.spent["gradient"],
    )
    return (itself, *ports)


def _port(
    reference: tuple[str, Computed],
    tested: tuple[str, Computed],
    parts: Mapping[str, AuditReport],
    options: AuditOptions,
) -> Port:
    (first_name, first), (name, port) = reference, tested
    gap = Gap(first, port)
    audits = [parts[first_name], parts[name]]
    random = [part.target for part in audits if _has(part, "GA801")]
    excuse = _excuse(audits)
    sentence = evidence = confidence = ""
    if gap.agrees:
        verdict = Verdict.AGREE if gap.resolution <= _significant(first, port, options) else Verdict.INCONCLUSIVE
        if verdict is Verdict.INCONCLUSIVE:
            sentence = f"Nothing differs, but a difference below {gap.resolution:.2g} would not have been seen."
    elif random:
        verdict = Verdict.INCONCLUSIVE
        sentence = f"{' and '.join(random)} draws random numbers (GA801), each framework others: compare without them."
    elif gap.losses_agree and excuse:
        # the gradients do not tell the functions apart
        verdict, sentence = Verdict.INCONCLUSIVE, f"The losses agree; the gradients differ, and {excuse}."
    else:
        right = all(part.verdict is Verdict.AGREE for part in audits)
        verdict, sentence = Verdict.DISAGREE, _difference(reference, tested, gap, derivative=right)
        evidence, confidence = explained(name, first, port, derivative=not excuse)
    return Port(
        name=name,
        loss=port.loss,
        loss_difference=gap.loss,
        gradient_difference=gap.gradient,
        verdict=verdict,
        sentence=sentence,
        evidence=evidence,
        confidence=confidence,
        evaluations=port.budget.evaluations,
        gradients=port.budget.spent["gradient"],
    )


def _significant(first: Computed, port: Computed, options: AuditOptions) -> float:
    single = max(first.eps, port.eps) > _SINGLE_EPS
    return options.significant or (_SIGNIFICANT_SINGLE if single else _SIGNIFICANT)


def _has(part: AuditReport, code: str) -> bool:
    return any(finding.code == code for finding in part.findings)


def _excuse(audits: list[AuditReport]) -> str:
    """Why gradients may differ though the functions are the same; empty: for no reason."""
    wrong = [part.target for part in audits if part.verdict is Verdict.DISAGREE]
    if wrong:
        return f"that of {' and '.join(wrong)} is wrong"
    kinked = [part.target for part in audits if _has(part, "GA601")]
    return f"{' and '.join(kinked)} has a kink here (GA601), where another one is right, too" if kinked else ""


def _difference(reference: tuple[str, Computed], tested: tuple[str, Computed], gap: Gap, *, derivative: bool) -> str:
    (first_name, first), (name, port) = reference, tested
    own = " Each gradient is the derivative of its own loss." if derivative else ""
    if not gap.losses_agree:
        digits = 6 if gap.loss > 1e-4 else 12  # so many that they differ
        losses = f"{port.loss:.{digits}g} against {first.loss:.{digits}g}"
        return f"{name} is another function than {first_name}: at the same parameters the losses are {losses}.{own}"
    tensors = ", ".join(f"{n} by {gap.tensors[n]:.2g}" for n in gap.different[:_LISTED])
    return f"{name} is another function than {first_name}: the losses agree, but gradients differ ({tensors}).{own}"
