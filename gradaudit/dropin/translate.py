"""What the frameworks' checkers are asked, in gradaudit's words: which errors matter, and whether a report passes."""

from __future__ import annotations

from collections.abc import Iterator

from gradaudit.compare import Verdict
from gradaudit.report import AuditReport, ParameterResult

__all__ = ["failures", "significant"]

#: No tolerance is a licence: an error of one per cent fails, whatever was asked for.
_FINEST, _COARSEST = 1e-6, 1e-2


def significant(rtol: float | None) -> float | None:
    """The smallest error that matters, from a relative tolerance; None: gradaudit's own."""
    return None if rtol is None or not rtol > 0 else min(max(rtol, _FINEST), _COARSEST)


def failures(report: AuditReport, rtol: float | None, *, nondeterministic: bool = False) -> list[AuditReport]:
    """The parts of a report that do not pass.

    Args:
        report: of an operator.
        rtol: as the caller gave it; proven errors below it pass, in the tensor and in each entry that was read.
        nondeterministic: gradients that do not repeat themselves pass if nothing else is wrong with them.
    """
    smallest = significant(rtol) or 0.0
    return [part for part in report.parts if not _passes(part, smallest, nondeterministic=nondeterministic)]


def _passes(part: AuditReport, smallest: float, *, nondeterministic: bool) -> bool:
    if part.verdict is Verdict.AGREE:
        return True
    if part.verdict is Verdict.INCONCLUSIVE:
        return nondeterministic and bool(part.findings) and all(f.code == "GA802" for f in part.findings)
    wrong = [p for p in part.parameters if p.verdict is Verdict.DISAGREE]
    return bool(wrong) and all(error < smallest for p in wrong for error in _errors(p))


def _errors(parameter: ParameterResult) -> Iterator[float]:
    """Relative: of the tensor, and of each entry that was read, beside the larger of its two values."""
    yield parameter.relative_error
    read = [(w.analytic, w.numeric) for w in parameter.wrong]
    if parameter.entries is not None:
        rows = zip(parameter.entries.verdict, parameter.entries.analytic, parameter.entries.numeric, strict=True)
        read += [(a, n) for verdict, a, n in rows if verdict is Verdict.DISAGREE]
    for analytic, numeric in read:
        larger = max(abs(analytic), abs(numeric))
        yield abs(analytic - numeric) / larger if larger > 0 else 0.0
