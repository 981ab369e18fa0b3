"""The demo: the original table, the audits of both nets, the finding in plain words, and the cure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from gradaudit import across
from gradaudit.auditor import audit
from gradaudit.backends import registry
from gradaudit.cli.output import Advance
from gradaudit.compare import Verdict, worst
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model
from gradaudit.recurrent import Truncation
from gradaudit.render.to_text import number, ports_table, table
from gradaudit.report import AuditReport, ParameterResult
from gradaudit.testing.scenarios import SeedCase, seed_case

__all__ = ["Case", "Outcome", "backend_names", "run"]

Echo = Callable[[str], None]
_MOST_ENTRIES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The sizes of the seed case."""

    n_sequences: int
    n_steps: int
    n_features: int
    n_classes: int
    dtype: str
    seed: int
    truncation: Truncation

    def build(self, backend: str) -> SeedCase:
        """The case on one backend."""
        sizes = {name: value for name, value in asdict(self).items() if name != "truncation"}
        return seed_case(backend, self.truncation, **sizes)

    @property
    def covered(self) -> int:
        """How many steps the backward pass covers."""
        return int((self.truncation.reach(self.n_steps) > 0).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All reports, and whether they show what the case is known to show."""

    report: AuditReport
    reproduced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Audits:
    dense: AuditReport
    recurrent: AuditReport
    lifted: AuditReport

    def reports(self) -> tuple[AuditReport, AuditReport, AuditReport]:
        return self.dense, self.recurrent, self.lifted


def backend_names(backend: str) -> list[str]:
    """The one that is asked for, or all that are installed."""
    return [backend] if backend != "all" else [n for n in registry.names() if registry.installed_version(n)]


def run(backend: str, case: Case, *, echo: Echo, progress: Advance) -> Outcome:
    """Run the demo on one backend, or on all that are installed.

    Raises:
        UnknownBackendError: no such backend.
        BackendNotInstalledError: its framework is not installed.
        OptionError: a size below 1.
    """
    names = backend_names(backend)
    results: dict[str, _Audits] = {}
    lifted: dict[str, Model] = {}
    truncated: dict[str, Model] = {}
    for name in names:
        built = case.build(name)
        lifted[name], truncated[name] = built.lifted, built.recurrent
        results[name] = _audit(name, built, case, progress)
        _show(name, case, results[name], echo)
    if len(names) > 1:
        _show_across("full gradients, truncation lifted", lifted, echo)
        _show_across(f"truncated gradients, {case.truncation}", truncated, echo)
    if backend == "all":
        for name in registry.names():
            if name not in names:
                echo(f"\n{name} is not installed: pip install 'gradaudit[{name}]'")
    parts = tuple(report for audits in results.values() for report in audits.reports())
    report = AuditReport(verdict=worst(p.verdict for p in parts), target="gradaudit demo", parts=parts)
    return Outcome(report=report, reproduced=all(_reproduced(case, audits) for audits in results.values()))


def _audit(backend: str, built: SeedCase, case: Case, progress: Advance) -> _Audits:
    options = AuditOptions(seed=case.seed, entries=True)

    def one(model: Model, target: str) -> AuditReport:
        name = f"{backend}: {target}"
        return audit(model, options, target=name, progress=lambda n: progress(name, n))

    return _Audits(
        dense=one(built.dense, "feed-forward"),
        recurrent=one(built.recurrent, f"recurrent, {case.truncation}"),
        lifted=one(built.lifted, "recurrent, none()"),
    )


def _show(backend: str, case: Case, audits: _Audits, echo: Echo) -> None:
    sizes = (
        f"{case.n_sequences} sequences x {case.n_steps:,} steps, {case.n_features} features, {case.n_classes} classes"
    )
    echo(f"\n{backend}: {sizes}, {case.dtype}, {case.truncation}, seed {case.seed}\n")
    echo(f"  loss FF   {audits.dense.loss:.6f}")
    echo(f"  loss REC  {audits.recurrent.loss:.6f}\n")
    echo("\n".join(_table(audits.dense, audits.recurrent)))
    for report in audits.reports():
        echo(f"\n{report}")
    echo(f"\n{_in_words(case, audits)}")


def _table(dense: AuditReport, recurrent: AuditReport) -> list[str]:
    """The original table: finite differences and analytic gradients of both nets, for W and b."""
    rows = [["", "FF finite", "FF analytic", "REC finite", "REC analytic"]]
    for name in ("W", "b"):
        rows += _rows(dense[name], recurrent[name])
    return table(rows, right=(1, 2, 3, 4))


def _rows(dense: ParameterResult, recurrent: ParameterResult) -> list[list[str]]:
    if dense.entries is None or recurrent.entries is None:
        sizes = (dense.numeric_size, dense.analytic_size, recurrent.numeric_size, recurrent.analytic_size)
        return [[f"|{dense.name}| along one direction", *map(number, sizes)]]
    columns = (dense.numeric, dense.analytic, recurrent.numeric, recurrent.analytic)
    flat = [column.ravel() for column in columns if column is not None]
    width = dense.shape[-1]
    labels = [f"{dense.name}[{', '.join(map(str, divmod(i, width)))}]" if len(dense.shape) > 1 else f"{dense.name}[{i}]"
              for i in range(flat[0].size)]  # fmt: skip
    rows = [[label, *(_signed(column[i]) for column in flat)] for i, label in enumerate(labels)]
    return rows[:_MOST_ENTRIES]


def _signed(value: float) -> str:
    return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.2e}"


def _in_words(case: Case, audits: _Audits) -> str:
    finding = next((f for f in audits.recurrent.findings if f.code == "GA102"), None)
    if finding is None:
        agree = all(report.verdict is Verdict.AGREE for report in audits.reports())
        if agree and case.truncation.cuts(case.n_steps):
            return (
                f"What is going on: nothing. The recurrent weights are zero, so no gradient crosses a step, and "
                f"{case.truncation}\nhas nothing to cut. All gradients are right."
            )
        return "What is going on: nothing. All gradients are right." if agree else "What is going on: see the findings."
    ratio = finding.numbers["norm_ratio"]
    visited = "the last step" if case.truncation.k == 1 else f"the last {case.truncation.k} steps"
    return (
        f"What is going on: the recurrent net's gradient is {1 / ratio:,.0f} times too small (ratio {number(ratio)}),\n"
        f"because its backward pass is truncated, {case.truncation}: it visits {visited} of {case.n_steps:,} only.\n"
        f"Lift the truncation, and the gradient is right: build the layer with none()."
    )


def _show_across(title: str, models: Mapping[str, Model], echo: Echo) -> None:
    echo(f"\nacross backends: {title}\n")
    echo("\n".join(ports_table(across.ports(models))))


def _reproduced(case: Case, audits: _Audits) -> bool:
    """The feed-forward and the lifted net agree; the truncated one disagrees for that reason, if it drops any step."""
    if audits.dense.verdict is not Verdict.AGREE or audits.lifted.verdict is not Verdict.AGREE:
        return False
    if case.covered == case.n_steps:
        return audits.recurrent.verdict is Verdict.AGREE
    codes = [finding.code for finding in audits.recurrent.findings]
    return audits.recurrent.verdict is Verdict.DISAGREE and codes == ["GA102"]
