"""The public calls: `audit`, `audit_all`, `assert_gradients_agree`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from typing_extensions import Unpack

from gradaudit import across, auditor
from gradaudit.backends import registry
from gradaudit.compare import Verdict
from gradaudit.errors import GradientMismatchError
from gradaudit.options import Options, options_of
from gradaudit.protocols import Model
from gradaudit.report import AuditReport

__all__ = ["assert_gradients_agree", "audit", "audit_all", "audit_step"]


def audit(
    target: Any,
    at: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    gradient: Callable[..., Any] | bool | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """Is the analytic gradient the derivative of this loss; how far is it off, where, how sure are we, and why?

    Args:
        target: what is differentiated: a module or model with parameters of its own; a function of what ``at`` holds,
            which returns the loss; or anything with ``parameters()``, ``loss(p)`` and ``value_and_grad(p)``.
        at: the base point of a function: an array, or a container of arrays, of its framework.
        loss: target -> one number, where the target is a module or model.
        gradient: the gradient of a NumPy function: a function of ``at``, or True if the target returns (loss,
            gradient).
        name: of the target in the report; by default its own.
        progress: called with the number of forward passes so far.
        **options: see `AuditOptions`: parameters, significant, intended, truncation, false_alarm, max_evaluations,
            seed, entries, batch_bytes.

    Raises:
        AmbiguousBackendError: no framework, or more than one, recognises the target.
        ModelContractError: the model breaks its contract (names, shapes, dtypes, no scalar loss, changed inputs).
        NonFiniteLossError: the loss is not finite at the base point.
        OptionError: an unknown option, or one out of its range.
    """
    chosen = options_of(options)
    model = registry.model_of(target, at, loss=loss, gradient=gradient)
    return auditor.audit(model, chosen, target=name or _name(target), progress=progress)


def audit_all(
    models: Mapping[str, Model],
    *,
    name: str = "all models",
    progress: Callable[[int], None] | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """Audit the same model in several frameworks: one table, and one report each in ``parts``.

    The options are those of `audit`, for every model; the same directions are probed everywhere.

    Raises:
        OptionError: no models, an unknown option, or one out of its range.
    """
    return across.audit_all(models, options_of(options), target=name, progress=progress)


def audit_step(
    target: Any,
    step: Callable[..., Any],
    *,
    loss: Callable[..., Any],
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
    sizes: Mapping[str, int] | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """Is the gradient that the optimiser sees the derivative of the objective that this training step is meant for?

    Only PyTorch modules. All that the step changes in the module, its optimisers and loss scalers is put back.

    Args:
        target: the module that is trained.
        step: target -> anything; calls backward, and perhaps the optimiser.
        loss: target -> one number, the objective over all the data of the step.
        name: in the report; by default the module's own.
        progress: called with the number of forward passes so far.
        sizes: whole numbers by which a constant factor is named, for example ``{"world size": 2}``.
        **options: see `audit`.

    Raises:
        AmbiguousBackendError: the target is no PyTorch module.
        ModelContractError: the step leaves no gradient, or the loss breaks its contract.
        OptionError: an unknown option, or one out of its range.
    """
    model = registry.step_of(target, step, loss=loss, sizes=sizes or {})
    return auditor.audit(model, options_of(options), target=name or _name(target), progress=progress)


def assert_gradients_agree(
    target: Any,
    at: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    gradient: Callable[..., Any] | bool | None = None,
    name: str | None = None,
    **options: Unpack[Options],
) -> AuditReport:
    """For test suites: `audit`, and raise unless the verdict is AGREE.

    Raises:
        GradientMismatchError: the verdict is DISAGREE or INCONCLUSIVE; the report is its text and its ``report``.
    """
    report = audit(target, at, loss=loss, gradient=gradient, name=name, **options)
    if report.verdict is not Verdict.AGREE:
        raise GradientMismatchError(report)
    return report


def _name(target: Any) -> str:
    """A function's own name, or that of its type."""
    return getattr(target, "__name__", None) or type(target).__name__
