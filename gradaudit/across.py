"""Several models that should be the same: one table, each audited, losses and gradients compared with the first."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from gradaudit.arrays import Gradients, global_norm
from gradaudit.auditor import Progress, audit_each
from gradaudit.compare import worst
from gradaudit.errors import OptionError
from gradaudit.mapping import PortMapping, corresponding
from gradaudit.measure.state import preserved
from gradaudit.options import AuditOptions
from gradaudit.ports.computed import Handed, handed
from gradaudit.ports.judged import compared
from gradaudit.protocols import Model
from gradaudit.report import AuditReport, Port

__all__ = ["audit_all", "ports"]


def audit_all(
    models: Mapping[str, Model],
    options: AuditOptions,
    *,
    target: str,
    mapping: Mapping[str, PortMapping] | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit each model with the same directions and compare them with the first.

    Args:
        models: by name.
        options: for every one of them.
        target: how the report names them all.
        mapping: how each port's parameters are made of the first model's: then all are audited at these, and must be
            the same function. None: each has parameters of its own.
        progress: called with the number of forward passes so far.

    Raises:
        OptionError: no models, or a mapping that does not fit.
    """
    if not models:
        msg = "there are no models to audit"
        raise OptionError(msg, where="audit_all()", hint='audit_all({"torch": a, "jax": b})')
    started = time.perf_counter()
    at_the_first = None if mapping is None else _handed(models, mapping)
    audited = models if at_the_first is None else {name: port.model for name, port in at_the_first.items()}
    parts = audit_each(audited, options, progress=progress)
    own = dict(zip(models, parts, strict=True))
    found = ports(models) if at_the_first is None else compared(at_the_first, own, options)
    return AuditReport(
        verdict=worst([*(part.verdict for part in parts), *(port.verdict for port in found if port.verdict)]),
        target=target,
        parts=parts,
        ports=found,
        evaluations=sum(part.evaluations for part in parts) + sum(port.evaluations for port in found),
        gradients=sum(part.gradients for part in parts) + sum(port.gradients for port in found),
        seconds=time.perf_counter() - started,
        options=options,
        complete=all(part.complete for part in parts),
    )


def _handed(models: Mapping[str, Model], mapping: Mapping[str, PortMapping]) -> dict[str, Handed]:
    first_name = next(iter(models))
    unknown = [name for name in mapping if name not in models or name == first_name]
    if unknown:
        msg = f"there is no port {', '.join(map(repr, unknown))} of {first_name!r}"
        raise OptionError(msg, where="mapping", hint=f"one of {', '.join(n for n in models if n != first_name)}")
    first = models[first_name].parameters()
    found = {}
    for name, model in models.items():
        of = corresponding(mapping.get(name), first, model.parameters(), name=name)
        found[name] = handed(name, model, of, first)
    return found


def ports(models: Mapping[str, Model]) -> tuple[Port, ...]:
    """Losses and analytic gradients at the base point, one more gradient evaluation each, against the first model."""
    computed = {}
    for name, model in models.items():
        with preserved(model):
            computed[name] = model.value_and_grad(model.parameters())
    first_loss, first = next(iter(computed.values()))
    return tuple(
        Port(
            name=name,
            loss=float(loss),
            loss_difference=_relative(float(loss) - float(first_loss), abs(float(first_loss))),
            gradient_difference=_difference(gradients, first),
        )
        for name, (loss, gradients) in computed.items()
    )


def _difference(gradients: Gradients, first: Gradients) -> float:
    """The largest difference of a tensor, relative to its norm in the first model; NaN where shapes or names differ."""
    if _shapes(gradients) != _shapes(first):
        return float("nan")
    left = {n: None if g is None or (f := first[n]) is None else g.astype(np.float64) - f for n, g in gradients.items()}
    return max(_relative(global_norm({n: d}), global_norm({n: first[n]})) for n, d in left.items())


def _shapes(gradients: Gradients) -> dict[str, tuple[int, ...] | None]:
    return {name: None if g is None else g.shape for name, g in gradients.items()}


def _relative(difference: float, size: float) -> float:
    return 0.0 if difference == 0 else abs(difference) / size if size > 0 else float("inf")
