"""Runs the rules in order; each cause accounts for some of the wrong tensors."""

from __future__ import annotations

from dataclasses import replace

from gradaudit.diagnose.evidence import Evidence
from gradaudit.diagnose.table import rules
from gradaudit.report import Finding

__all__ = ["explain"]

#: Codes of causes that only a pattern tells.
_PATTERNS = ("GA2", "GA3", "GA4")


def explain(evidence: Evidence) -> tuple[Finding, ...]:
    """All findings, in the order of the table; a rule sees only the tensors that those before it left open."""
    findings: list[Finding] = []
    for rule in rules():
        finding = rule.check(evidence)
        if finding is not None:
            findings.append(_beside_what_was_not_tried(finding, evidence) if rule.explains else finding)
            if rule.explains:
                evidence.explained.update(finding.parameters)
    return tuple(findings)


def _beside_what_was_not_tried(finding: Finding, evidence: Evidence) -> Finding:
    """A pattern that fits may be made by a line of which no experiment tells, as one that writes in place."""
    if finding.confidence != "consistent" or not finding.code.startswith(_PATTERNS) or not evidence.untried:
        return finding
    seen = ", ".join(map(str, evidence.untried))
    note = f"Perhaps the cause, and not to be tried, since nothing runs without it: {seen}."
    return replace(finding, sentence=f"{finding.sentence} {note}")
