"""What an audit returns: frozen data, the same on every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradaudit.arrays import Array
from gradaudit.compare import Verdict
from gradaudit.options import AuditOptions
from gradaudit.render import to_json, to_text

__all__ = [
    "SCHEMA_VERSION",
    "AuditReport",
    "Entries",
    "Finding",
    "ParameterResult",
    "Port",
    "WrongEntry",
    "load_report",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is going on, and how sure we are.

    Attributes:
        code: stable, for example GA102; `gradaudit explain GA102` says more.
        title: in a few words.
        confidence: ``proven`` (an experiment made analytic and numeric agree), ``consistent`` (the pattern fits and
            nothing else does) or ``unexplained``.
        sentence: what happens, with the sizes.
        evidence: how we know.
        remedy: what to do.
        parameters: the tensors concerned.
        numbers: by name, for programs.
    """

    code: str
    title: str
    confidence: str
    sentence: str
    evidence: str = ""
    remedy: str = ""
    parameters: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Entry by entry, in C order: analytic and numeric derivative, the bound on their difference, the verdict."""

    analytic: tuple[float, ...]
    numeric: tuple[float, ...]
    bound: tuple[float, ...]
    verdict: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongEntry:
    """One entry that was found wrong."""

    index: tuple[int, ...]
    analytic: float
    numeric: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterResult:
    """One parameter tensor.

    Attributes:
        analytic_size: norm of the analytic gradient; |<g, v>| where only a direction was measured.
        numeric_size: the same of the numeric one.
        relative_error: norm of the difference relative to the larger of both.
        ratio: the factor c that makes analytic = c * numeric fit best (least squares).
        resolution: an error above this, relative, would have been seen.
        missing: the framework gave no gradient (None).
        entries: entry by entry where the tensor is small and was read, otherwise None.
        where: where in the tensor it is wrong, in words, if that was looked for.
        wrong: wrong entries that were read one by one, the worst first.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    verdict: Verdict
    analytic_size: float
    numeric_size: float
    relative_error: float
    ratio: float
    resolution: float
    missing: bool = False
    entries: Entries | None = None
    where: str = ""
    wrong: tuple[WrongEntry, ...] = ()

    @property
    def analytic(self) -> Array | None:
        """The analytic gradient in the parameter's shape, float64; None where entries were not read."""
        return None if self.entries is None else np.array(self.entries.analytic).reshape(self.shape)

    @property
    def numeric(self) -> Array | None:
        """The numeric gradient in the parameter's shape, float64; None where entries were not read."""
        return None if self.entries is None else np.array(self.entries.numeric).reshape(self.shape)

    @property
    def bound(self) -> Array | None:
        """The bound on the error of both, in the parameter's shape; None where entries were not read."""
        return None if self.entries is None else np.array(self.entries.bound).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One model of several that should be the same, against the first.

    Attributes:
        name: as given to `gradaudit.audit_all`.
        loss: at the base point.
        loss_difference: relative, against the first model.
        gradient_difference: norm of the difference of the analytic gradients, relative; NaN where names differ.
        verdict: whether it is the same function as the first; None where each came with parameters of its own.
        sentence: how it differs, with the sizes.
        evidence: what would make it agree, found by experiment.
        confidence: of that: ``proven`` (losses and gradients then agree), ``consistent`` (losses do), ``unexplained``.
        evaluations: forward passes for the comparison.
        gradients: gradient evaluations for it.
    """

    name: str
    loss: float
    loss_difference: float
    gradient_difference: float
    verdict: Verdict | None = None
    sentence: str = ""
    evidence: str = ""
    confidence: str = ""
    evaluations: int = 0
    gradients: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The result of one audit, or of several under one name (then ``parts`` holds them).

    Attributes:
        verdict: AGREE, DISAGREE or INCONCLUSIVE.
        target: what was audited.
        judged: ``loss``, or ``frozen`` where the user accepted the truncation and the gradient was judged given it.
        loss: at the base point.
        dtype: of the loss.
        source: who supplied the numeric derivatives.
        parameters: the worst first.
        findings: in the order of the table of rules.
        evaluations: forward passes.
        gradients: gradient evaluations.
        seconds: wall time.
        environment: versions.
        options: as given.
        complete: False where the budget ended first.
        parts: the reports of the single models.
        ports: how the models compare with the first.
        remarks: what a user should know beside the findings; sentences.
    """

    verdict: Verdict
    target: str
    judged: str = "loss"
    loss: float = float("nan")
    dtype: str = ""
    source: str = ""
    parameters: tuple[ParameterResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    evaluations: int = 0
    gradients: int = 0
    seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    options: AuditOptions = field(default_factory=AuditOptions)
    complete: bool = True
    parts: tuple[AuditReport, ...] = ()
    ports: tuple[Port, ...] = ()
    remarks: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __getitem__(self, name: str) -> ParameterResult:
        """The result of one parameter.

        Raises:
            KeyError: lists the names there are.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        msg = f"no parameter {name!r}; there are {', '.join(p.name for p in self.parameters) or 'none'}"
        raise KeyError(msg)

    def part(self, target: str) -> AuditReport:
        """The report of one model.

        Raises:
            KeyError: lists the models there are.
        """
        for part in self.parts:
            if part.target == target:
                return part
        msg = f"no part {target!r}; there are {', '.join(p.target for p in self.parts) or 'none'}"
        raise KeyError(msg)

    @property
    def seed(self) -> int:
        """Of the probing directions."""
        return self.options.seed

    def __str__(self) -> str:
        return to_text.text(self)

    def to_json(self) -> str:
        """As JSON, readable by `load_report`; NaN and infinities are written as strings."""
        return to_json.dumps(self)

    def save(self, path: str | Path) -> None:
        """Write the JSON to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, text: str) -> AuditReport:
        """Read what `to_json` wrote.

        Raises:
            ReportFormatError: no JSON, or another schema version.
        """
        return to_json.loads(text, cls, SCHEMA_VERSION)


def load_report(path: str | Path) -> AuditReport:
    """Read a saved report.

    Raises:
        ReportFormatError: no JSON, or another schema version.
        OSError: the file cannot be read.
    """
    return AuditReport.from_json(Path(path).read_text(encoding="utf-8"))
