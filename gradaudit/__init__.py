"""gradaudit audits gradients in any framework: are they right, how far off, where, how sure are we, and why?

Importing it imports NumPy and nothing else; names are loaded on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradaudit.api import (
        Target,
        assert_gradients_agree,
        audit,
        audit_all,
        audit_operator,
        audit_step,
        by_step,
        identify_by_length,
        identify_truncation,
    )
    from gradaudit.compare import Verdict
    from gradaudit.errors import GradauditError, GradientMismatchError
    from gradaudit.lens import BiasCurve, bias_curve
    from gradaudit.lens.by_pair import by_pair
    from gradaudit.lens.identify import Identified
    from gradaudit.options import AuditOptions
    from gradaudit.protocols import Model
    from gradaudit.recurrent import RecurrentSpec, Truncation, chunks, none, randomised, tail, tbptt, window
    from gradaudit.report import AuditReport, Finding, load_report

__all__ = [
    "AuditOptions",
    "AuditReport",
    "BiasCurve",
    "Finding",
    "GradauditError",
    "GradientMismatchError",
    "Identified",
    "Model",
    "RecurrentSpec",
    "Target",
    "Truncation",
    "Verdict",
    "assert_gradients_agree",
    "audit",
    "audit_all",
    "audit_operator",
    "audit_step",
    "bias_curve",
    "by_pair",
    "by_step",
    "chunks",
    "identify_by_length",
    "identify_truncation",
    "load_report",
    "none",
    "randomised",
    "tail",
    "tbptt",
    "window",
]

_HOMES = {
    "api": (
        "Target",
        "assert_gradients_agree",
        "audit",
        "audit_all",
        "audit_operator",
        "audit_step",
        "by_step",
        "identify_by_length",
        "identify_truncation",
    ),
    "compare": ("Verdict",),
    "errors": ("GradauditError", "GradientMismatchError"),
    "lens": ("BiasCurve", "bias_curve"),
    "lens.by_pair": ("by_pair",),
    "lens.identify": ("Identified",),
    "options": ("AuditOptions",),
    "protocols": ("Model",),
    "recurrent": ("RecurrentSpec", "Truncation", "chunks", "none", "randomised", "tail", "tbptt", "window"),
    "report": ("AuditReport", "Finding", "load_report"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        msg = f"module 'gradaudit' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"gradaudit.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
