"""The demo as a black box: programs as people write them, of which nothing is declared."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gradaudit.auditor import audit
from gradaudit.backends import registry
from gradaudit.cli.demo import Case, Outcome, backend_names
from gradaudit.cli.output import Advance
from gradaudit.compare import Verdict, worst
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model
from gradaudit.recurrent import Problem, RecurrentSpec, initial_weights, random_sequences
from gradaudit.report import AuditReport, Finding

__all__ = ["black_box", "run"]

#: Lines shown before and after a cut.
_AROUND = 2


def run(backend: str, case: Case, *, echo: Callable[[str], None], progress: Advance) -> Outcome:
    """Audit a recurrent net of which only the loss is known, on one backend or on all that are installed.

    Raises:
        UnknownBackendError: no such backend.
        BackendNotInstalledError: its framework is not installed.
        OptionError: a size below 1, or a truncation without an end.
    """
    reports: list[AuditReport] = []
    reproduced = True
    with TemporaryDirectory() as folder:
        for name in backend_names(backend):
            model, source = black_box(name, case, Path(folder))
            target = f"{name}: a black box"

            def counted(n: int, target: str = target) -> None:
                progress(target, n)

            report = audit(model, AuditOptions(seed=case.seed), target=target, progress=counted)
            reports.append(report)
            echo(f"\n{report}")
            finding = next((f for f in report.findings if f.code == "GA104"), None)
            lines = _named(finding, source)
            for line in lines:
                echo(_excerpt(source, line))
            # NumPy's backward pass is written by hand: there is no cut to find, and no line
            found = finding is not None and finding.numbers["k"] == case.covered and (bool(lines) or name == "numpy")
            reproduced = reproduced and report.verdict is Verdict.DISAGREE and found
    verdict = worst(report.verdict for report in reports)
    whole = AuditReport(verdict=verdict, target="gradaudit demo --blind", parts=tuple(reports))
    return Outcome(report=whole, reproduced=reproduced)


def black_box(backend: str, case: Case, folder: Path) -> tuple[Model, Path]:
    """The program of one backend as a model of its inputs and weights, and its source, a file in ``folder``.

    A copy, so that it is a file of the user's and not of an installed library.
    """
    source = folder / f"rnn_{backend}.py"
    source.write_bytes((files("gradaudit.testing") / "blind" / source.name).read_bytes())
    spec = RecurrentSpec(n_features=case.n_features, n_classes=case.n_classes)
    data = random_sequences(spec, n_sequences=case.n_sequences, n_steps=case.n_steps, seed=case.seed, dtype=case.dtype)
    weights = initial_weights(spec, seed=case.seed, dtype=case.dtype)
    problem = Problem(spec=spec, weights=weights, data=data)
    built = _load(source).build(problem.labels(), case.covered)
    parameters = {"x": problem.inputs(), **weights}
    build = registry.get(backend)
    if backend == "numpy":
        return build.function_model(lambda p: built(p)[0], parameters, value_and_grad=built, any_dtype=True), source
    return build.function_model(built, parameters), source


def _load(source: Path) -> Any:
    spec = importlib.util.spec_from_file_location(source.stem, source)
    assert spec is not None  # it ends with .py
    assert spec.loader is not None  # as any source has
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _named(finding: Finding | None, source: Path) -> list[int]:
    """The lines of the source that a finding names."""
    if finding is None or finding.confidence != "proven":
        return []
    words = finding.title.replace(",", " ").split()
    return [int(word.rpartition(":")[2]) for word in words if word.startswith(f"{source.name}:")]


def _excerpt(source: Path, line: int) -> str:
    lines = source.read_text(encoding="utf-8").splitlines()
    first = max(1, line - _AROUND)
    shown = range(first, min(len(lines), line + _AROUND) + 1)
    return "\n" + "\n".join(f"  {'>' if n == line else ' '} {source.name}:{n}  {lines[n - 1]}".rstrip() for n in shown)
