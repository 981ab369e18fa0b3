"""Runs the rules in order; each cause accounts for some of the wrong tensors."""

from __future__ import annotations

from gradaudit.diagnose.evidence import Evidence
from gradaudit.diagnose.table import rules
from gradaudit.report import Finding

__all__ = ["explain"]


def explain(evidence: Evidence) -> tuple[Finding, ...]:
    """All findings, in the order of the table; a rule sees only the tensors that those before it left open."""
    findings: list[Finding] = []
    for rule in rules():
        finding = rule.check(evidence)
        if finding is not None:
            findings.append(finding)
            if rule.explains:
                evidence.explained.update(finding.parameters)
    return tuple(findings)
