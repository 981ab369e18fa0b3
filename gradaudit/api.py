"""The public calls: `audit`, `audit_all`, `assert_gradients_agree`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gradaudit import across, auditor
from gradaudit.compare import Verdict
from gradaudit.errors import GradientMismatchError
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model
from gradaudit.recurrent import Truncation
from gradaudit.report import AuditReport

__all__ = ["assert_gradients_agree", "audit", "audit_all"]

_DEFAULT = AuditOptions()


def audit(
    target: Model,
    *,
    parameters: str = _DEFAULT.parameters,
    truncation: Truncation | None = None,
    intended: Sequence[str] = (),
    significant: float | None = None,
    false_alarm: float = _DEFAULT.false_alarm,
    max_evaluations: int = _DEFAULT.max_evaluations,
    seed: int = _DEFAULT.seed,
    entries: bool = _DEFAULT.entries,
    batch_bytes: int = _DEFAULT.batch_bytes,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> AuditReport:
    """Is the analytic gradient the derivative of this loss; how far is it off, where, how sure are we, and why?

    Args:
        target: a model: anything with ``parameters()``, ``loss(p)`` and ``value_and_grad(p)``.
        parameters: glob over parameter names.
        truncation: a truncation that you accept; a model that declares it is judged given its cuts.
        intended: cuts that you mean, by line (``"model.py:57"``) or function, globs allowed; judged given them.
        significant: the smallest relative error that matters; by default 1e-3, and 1e-2 for bare float32 losses.
        false_alarm: accepted probability, an audit, that a right gradient is called wrong.
        max_evaluations: forward passes at most.
        seed: of the probing directions.
        entries: read the entries of small tensors also where the tensor agrees.
        batch_bytes: memory for evaluating many points at once.
        name: of the target in the report; by default its type's.
        progress: called with the number of forward passes so far.

    Raises:
        ModelContractError: the model breaks its contract (names, shapes, dtypes, no scalar loss, changed inputs).
        NonFiniteLossError: the loss is not finite at the base point.
        OptionError: an option out of its range.
    """
    options = AuditOptions(
        parameters=parameters,
        truncation=truncation,
        intended=intended,
        significant=significant,
        false_alarm=false_alarm,
        max_evaluations=max_evaluations,
        seed=seed,
        entries=entries,
        batch_bytes=batch_bytes,
    )
    return auditor.audit(target, options, target=name or type(target).__name__, progress=progress)


def audit_all(
    models: Mapping[str, Model],
    *,
    parameters: str = _DEFAULT.parameters,
    truncation: Truncation | None = None,
    intended: Sequence[str] = (),
    significant: float | None = None,
    false_alarm: float = _DEFAULT.false_alarm,
    max_evaluations: int = _DEFAULT.max_evaluations,
    seed: int = _DEFAULT.seed,
    entries: bool = _DEFAULT.entries,
    batch_bytes: int = _DEFAULT.batch_bytes,
    name: str = "all models",
    progress: Callable[[int], None] | None = None,
) -> AuditReport:
    """Audit the same model in several frameworks: one table, and one report each in ``parts``.

    The options are those of `audit`, for every model; the same directions are probed everywhere.

    Raises:
        OptionError: no models, or an option out of its range.
    """
    options = AuditOptions(
        parameters=parameters,
        truncation=truncation,
        intended=intended,
        significant=significant,
        false_alarm=false_alarm,
        max_evaluations=max_evaluations,
        seed=seed,
        entries=entries,
        batch_bytes=batch_bytes,
    )
    return across.audit_all(models, options, target=name, progress=progress)


def assert_gradients_agree(
    target: Model,
    *,
    parameters: str = _DEFAULT.parameters,
    truncation: Truncation | None = None,
    intended: Sequence[str] = (),
    significant: float | None = None,
    false_alarm: float = _DEFAULT.false_alarm,
    max_evaluations: int = _DEFAULT.max_evaluations,
    seed: int = _DEFAULT.seed,
    entries: bool = _DEFAULT.entries,
    batch_bytes: int = _DEFAULT.batch_bytes,
    name: str | None = None,
) -> AuditReport:
    """For test suites: `audit`, and raise unless the verdict is AGREE.

    Raises:
        GradientMismatchError: the verdict is DISAGREE or INCONCLUSIVE; the report is its text and its ``report``.
    """
    report = audit(
        target,
        parameters=parameters,
        truncation=truncation,
        intended=intended,
        significant=significant,
        false_alarm=false_alarm,
        max_evaluations=max_evaluations,
        seed=seed,
        entries=entries,
        batch_bytes=batch_bytes,
        name=name,
    )
    if report.verdict is not Verdict.AGREE:
        raise GradientMismatchError(report)
    return report
