"""The exception tree. Every message is fact, place, hint: what is wrong with numbers, where, and the exact remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradaudit.report import AuditReport

__all__ = [
    "AmbiguousBackendError",
    "BackendError",
    "BackendNotInstalledError",
    "BackendVersionError",
    "GradauditError",
    "GradientMismatchError",
    "ModelContractError",
    "NonFiniteLossError",
    "NotOfferedError",
    "OptionError",
    "ReportFormatError",
    "UnknownBackendError",
]


class GradauditError(Exception):
    """Base of everything gradaudit raises on purpose.

    Args:
        fact: what is wrong, with the numbers.
        where: the argument, parameter or call it concerns.
        hint: what to do about it, exactly.
    """

    def __init__(self, fact: str, *, where: str = "", hint: str = "") -> None:
        self.fact = fact
        self.where = where
        self.hint = hint
        place = f" (in {where})" if where else ""
        remedy = f"\n\nHint: {hint}" if hint else ""
        super().__init__(f"{fact}{place}{remedy}")


class BackendError(GradauditError):
    """Something about a backend: unknown, absent, too old."""


class UnknownBackendError(BackendError, ValueError):
    """The name is not one of the registered backends."""


class BackendNotInstalledError(BackendError, ImportError):
    """The backend is known, but its framework cannot be imported."""


class BackendVersionError(BackendError, ImportError):
    """The framework is installed in a version that gradaudit does not support."""


class AmbiguousBackendError(BackendError, TypeError):
    """No backend, or more than one, recognises the target."""


class ModelContractError(GradauditError, TypeError):
    """A model broke the protocol: names, shapes, dtypes, a loss that is no scalar, inputs changed in place."""


class NonFiniteLossError(GradauditError, ArithmeticError):
    """The loss is NaN or infinite at the base point, so it has no derivative there."""


class OptionError(GradauditError, ValueError):
    """An option is out of its range."""


class NotOfferedError(GradauditError, NotImplementedError):
    """An operator cannot be differentiated in this way: it has no forward rule, its backward pass has no derivative."""


class ReportFormatError(GradauditError, ValueError):
    """A saved report cannot be read."""


class GradientMismatchError(GradauditError, AssertionError):
    """Raised by `gradaudit.assert_gradients_agree`; ``report`` holds the whole audit."""

    def __init__(self, report: AuditReport) -> None:
        self.report = report
        super().__init__(f"the gradients do not agree: {report.verdict}\n{report}")
