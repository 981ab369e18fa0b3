"""A report as text: at most 100 columns, no colour, the same on a terminal and in a log file."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradaudit.report import AuditReport, Finding, ParameterResult, Port

__all__ = ["finding_text", "headline", "number", "ports_table", "table", "text"]

_WIDTH = 100
_MOST_ROWS = 20


def text(report: AuditReport) -> str:
    """The whole report: headline, a row a parameter, findings; of several models or modes, one table and then each.

    A mode of an operator that agrees has said all in its row.
    """
    if report.parts:
        several = (
            report.parts if report.ports else [p for p in report.parts if p.verdict.value != "AGREE" or p.findings]
        )
        return "\n\n".join([_across(report) if report.ports else _modes(report), *map(text, several)])
    lines = [headline(report)]
    if report.verdict.value == "AGREE" and not report.findings:
        lines += ["", *_would_have_been_seen(report)]
    else:
        lines += ["", *_parameters(report.parameters)]
        for finding in report.findings:
            lines += ["", finding_text(finding)]
    lines += _remarks(report)
    if not report.complete:
        lines += ["", f"  The budget of {report.options.max_evaluations:,} evaluations ended before the plan did."]
    return "\n".join(lines)


def headline(report: AuditReport) -> str:
    """Verdict, what was audited, where the numbers come from, what it cost."""
    name = report.environment.get("backend", "")
    version = report.environment.get(name, "")
    framework = f"{name} {version}, " if name else ""
    given = f" given its {'cuts' if report.options.intended else 'truncation'}" if report.judged == "frozen" else ""
    left = f"{report.verdict}{given}   {report.target}"
    source = f"({framework}{report.dtype}; numeric: {report.source})"
    cost = f"{report.evaluations} evaluations, {report.seconds:.2f} s"
    if len(left) + len(source) + len(cost) + 3 <= _WIDTH:
        left = f"{left} {source}"
        return f"{left}{cost:>{_WIDTH - len(left)}}"
    return "\n".join([*textwrap.wrap(left, _WIDTH), f"  {source}{cost:>{_WIDTH - len(source) - 2}}"])


def number(value: float) -> str:
    """Three significant digits, short."""
    if value == 0 or math.isnan(value):
        return "0" if value == 0 else "nan"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Columns of equal width, two spaces apart, indented; those in ``right`` flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def finding_text(finding: Finding) -> str:
    """Code, title and confidence; then sentence, evidence and remedy."""
    head = f"  {finding.code}  {finding.title}"
    lines = [f"{head}{finding.confidence:>{_WIDTH - len(head)}}"]
    for part in (finding.sentence, finding.evidence, finding.remedy):
        if part:
            lines += textwrap.wrap(part, _WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9)
    lines.append(" " * 9 + f"gradaudit explain {finding.code}")
    return "\n".join(lines)


def _would_have_been_seen(report: AuditReport) -> list[str]:
    coarsest = max(report.parameters, key=lambda p: p.resolution)
    n = len(report.parameters)
    tensors = f"{n} parameter tensor{'s' if n != 1 else ''}"
    return [f"  {tensors}; a relative error above {number(coarsest.resolution)} would have been seen in any of them."]


def _parameters(parameters: Sequence[ParameterResult]) -> list[str]:
    head = ["parameter", "shape", "|analytic|", "|numeric|", "relative error", "ratio", "would have seen", "verdict"]
    rows = [head]
    for p in parameters[:_MOST_ROWS]:
        numbers = (p.analytic_size, p.numeric_size, p.relative_error, p.ratio, p.resolution)
        cells = [number(value) for value in numbers]
        if p.missing:
            cells[0] = "missing"
        rows.append([_shorten(p.name), str(p.shape), *cells, str(p.verdict)])
    lines = table(rows, right=(2, 3, 4, 5, 6))
    if len(parameters) > _MOST_ROWS:
        lines.append(f"  ... and {len(parameters) - _MOST_ROWS} more, all in report.parameters")
    return lines


def _shorten(name: str, width: int = 24) -> str:
    return name if len(name) <= width else "..." + name[3 - width :]


def ports_table(ports: Sequence[Port]) -> list[str]:
    """Losses and gradients of several models against the first."""
    judged = any(port.verdict for port in ports)
    rows = [["model", "loss", "loss differs by", "gradient differs by", *(["the same function"] if judged else [])]]
    for port in ports:
        differences = number(port.loss_difference), number(port.gradient_difference)
        verdict = [str(port.verdict)] if judged else []
        rows.append([_shorten(port.name), f"{port.loss:.9g}", *differences, *verdict])
    lines = table(rows, right=(1, 2, 3))
    for port in ports:
        if port.sentence:
            head = f"  {port.name}"
            lines += ["", f"{head}{port.confidence:>{_WIDTH - len(head)}}".rstrip()]
            for part in filter(None, (port.sentence, port.evidence)):
                lines += textwrap.wrap(part, _WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9)
    return lines


def _across(report: AuditReport) -> str:
    verdicts = [["model", "verdict", "evaluations", "time"]]
    verdicts += [[_shorten(p.target), str(p.verdict), str(p.evaluations), f"{p.seconds:.2f} s"] for p in report.parts]
    lines = [f"{report.verdict}   {report.target}", "", *table(verdicts, right=(2, 3))]
    return "\n".join([*lines, "", *ports_table(report.ports)])


def _modes(report: AuditReport) -> str:
    """An operator: a row a mode, and what is not offered."""
    rows = [["mode", "verdict", "would have seen", "evaluations", "time", "numeric"]]
    for part in report.parts:
        coarsest = max((p.resolution for p in part.parameters), default=math.inf)
        cells = [str(part.verdict), number(coarsest), str(part.evaluations), f"{part.seconds:.2f} s", part.source]
        rows.append([part.target, *cells])
    lines = [f"{report.verdict}   {_shorten(report.target)}", "", *table(rows, right=(2, 3, 4))]
    return "\n".join([*lines, *_remarks(report)])


def _remarks(report: AuditReport) -> list[str]:
    wrapped = [textwrap.wrap(r, _WIDTH, initial_indent="  ", subsequent_indent="  ") for r in report.remarks]
    return [line for lines in wrapped for line in ("", *lines)]
