"""One audit: preserve, baseline, measure, explain, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version

import numpy as np

from gradaudit.arrays import Array, ParameterSpec
from gradaudit.compare import Comparison, Verdict, worst
from gradaudit.diagnose.evidence import Evidence, least_squares_ratio, unequal
from gradaudit.diagnose.explain import explain
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.measure import plan
from gradaudit.measure.baseline import Baseline, baseline
from gradaudit.measure.beside import AtKink, judged_beside
from gradaudit.measure.judgement import Measurement
from gradaudit.measure.localise import Located
from gradaudit.measure.measurement import measured
from gradaudit.measure.state import SeedFixed, preserved
from gradaudit.measure.still import told_from_constant
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.options import AuditOptions
from gradaudit.protocols import (
    Model,
    SupportsBroadcasts,
    SupportsCuts,
    SupportsEnvironment,
    SupportsFrozen,
    SupportsTruncation,
)
from gradaudit.report import AuditReport, Entries, ParameterResult, WrongEntry
from gradaudit.sites import Broadcast

__all__ = ["Progress", "audit", "audit_each"]

Progress = Callable[[int], None]


def audit(
    model: Model, options: AuditOptions, *, target: str, progress: Progress | None = None, may_be_constant: bool = False
) -> AuditReport:
    """Audit one model.

    Args:
        model: implements the `gradaudit.protocols.Model` protocol.
        options: validated.
        target: how the report names the model.
        progress: called with the number of forward passes so far.
        may_be_constant: a loss that depends on no parameter, and its gradient of zero, are none of the user's mistakes.

    Raises:
        ModelContractError: the model breaks its contract.
        NonFiniteLossError: the loss is not finite at the base point.
        OptionError: the parameter selection matches nothing.
    """
    if not isinstance(model, Model):
        msg = f"cannot audit a {type(model).__name__}: it has no parameters(), loss() and value_and_grad()"
        hint = "wrap a function: gradaudit.backends.registry.get('torch').function_model(function, parameters)"
        raise ModelContractError(msg, where="audit()", hint=hint)
    started = time.perf_counter()
    budget = Budget(options.max_evaluations, progress)
    with preserved(model):
        evidence = _collect(model, options, budget, may_be_constant=may_be_constant)
        findings = explain(evidence)
        judged = _judged(evidence)
        entered = None if judged is None else evidence.entered(judged, judged.unread)
        remarks = (*map(_over_pairs, _broadcasts(model)), *_unused(model, options), *_flat(judged))
    return AuditReport(
        verdict=_verdict(evidence, judged),
        target=target,
        judged="frozen" if judged is not None and judged is evidence.frozen else "loss",
        loss=float((evidence.at_kink or evidence).baseline.loss),
        dtype=str(evidence.baseline.loss.dtype),
        source=judged.source.name if judged is not None else "none taken",
        parameters=_parameters(evidence, entered),
        findings=findings,
        evaluations=budget.evaluations,
        gradients=budget.spent["gradient"],
        seconds=time.perf_counter() - started,
        environment=_environment(model),
        options=options,
        complete=judged is None or judged.complete,
        remarks=remarks,
    )


def audit_each(
    models: Mapping[str, Model],
    options: AuditOptions,
    *,
    progress: Progress | None = None,
    may_be_constant: bool = False,
) -> tuple[AuditReport, ...]:
    """Audit several models with the same directions; arguments as of `audit`."""
    done = 0
    reports = []
    for name, model in models.items():
        counted = None if progress is None else lambda n, done=done: progress(done + n)
        reports.append(audit(model, options, target=name, progress=counted, may_be_constant=may_be_constant))
        done += reports[-1].evaluations
    return tuple(reports)


def _collect(model: Model, options: AuditOptions, budget: Budget, *, may_be_constant: bool) -> Evidence:
    base, unfixed = baseline(model, options, budget), None
    if not base.repeatable:
        fixed = SeedFixed(model)
        with suppress(Stop):
            again = baseline(fixed, options, budget)
            if again.repeatable:
                model, base, unfixed = fixed, again, base
    total = frozen = at_kink = None
    if base.repeatable:
        # values that overflow at far points are data, not something to warn the user of
        with np.errstate(all="ignore"):
            total = measured(model, base.loss, base.gradients, options, budget)
            if not may_be_constant:
                total = told_from_constant(total, base.gradients, budget, options.seed)
            held = _held(model, options)
            if held is not None and total.verdict is not Verdict.AGREE:
                frozen = measured(held, base.loss, base.gradients, options, budget)
            if frozen is None and (beside := judged_beside(model, total, options, budget)) is not None:
                at_kink = AtKink(base, total)
                model, base, total = beside
    return Evidence(
        model=model,
        options=options,
        baseline=base,
        unfixed=unfixed,
        total=total,
        frozen=frozen,
        at_kink=at_kink,
        budget=budget,
    )


def _held(model: Model, options: AuditOptions) -> Model | None:
    """The loss with its declared truncation, or the cuts that the user means, held at the base point."""
    if not options.intended:
        return model.frozen() if isinstance(model, SupportsFrozen) else None
    listed = model.cuts() if isinstance(model, SupportsCuts) else ()
    meant = [cut for cut in listed if any(cut.matches(glob) for glob in options.intended)]
    held = model.holding(meant) if meant and isinstance(model, SupportsCuts) else None
    if held is None:
        there = "; ".join(map(str, listed)) or "none that are listed"
        msg = f"intended={options.intended} names no cut; there are: {there}"
        hint = "a line or a function of these"
        if meant:
            msg = f"{'; '.join(map(str, meant))} can be removed, and not held: what it cuts off is not known as values"
            hint = "without intended=: the report proves the cut by removing it, and shows what it leaves out"
        raise OptionError(msg, where="options", hint=hint)
    return held


def _broadcasts(model: Model) -> Sequence[Broadcast]:
    if not isinstance(model, SupportsBroadcasts):
        return ()
    try:
        return model.broadcasts()
    except Exception:  # noqa: BLE001  # a remark is not worth a failure
        return ()


def _unused(model: Model, options: AuditOptions) -> tuple[str, ...]:
    """A truncation that is accepted, and that the model does not declare, changes nothing; that must not go unsaid."""
    own = model.truncation if isinstance(model, SupportsTruncation) else None
    if options.truncation is None or options.truncation == own:
        return ()
    told = f"declares {own}" if own is not None else "declares no truncation"
    hint = "" if own is not None else '; to accept lines that cut the gradient, pass intended=["file.py:LINE"]'
    return (f"truncation={options.truncation} was not used: this model {told}{hint}.",)


def _flat(judged: Measurement | None) -> tuple[str, ...]:
    """A gradient of zero where the loss is flat is right, and says little of the code."""
    if judged is None or judged.still != "here":
        return ()
    said = "The loss is flat here: it is the same, in every digit, at all points nearby, and changes farther away only."
    return (f"{said} A gradient of zero is right, and all that this point tests: audit at other parameters, too.",)


def _over_pairs(broadcast: Broadcast) -> str:
    hint = "if each entry is meant for its own, give both operands one shape"
    return f"Perhaps another loss than is meant: {broadcast}, and summed; {hint}."


def _judged(evidence: Evidence) -> Measurement | None:
    """The frozen loss where the user accepts the truncation that the model declares, otherwise the loss."""
    accepted = evidence.options.truncation
    model = evidence.model
    declared = isinstance(model, SupportsTruncation) and accepted is not None and model.truncation == accepted
    declared = declared or bool(evidence.options.intended)
    return evidence.frozen if declared and evidence.frozen is not None else evidence.total


def _verdict(evidence: Evidence, judged: Measurement | None) -> Verdict:
    if judged is None:
        return Verdict.INCONCLUSIVE
    repeats = evidence.baseline.gradient_repeatable
    return worst([judged.verdict, Verdict.AGREE if repeats else Verdict.INCONCLUSIVE])


@cache
def _own_version() -> str:
    return version("gradaudit")


def _environment(model: Model) -> dict[str, str]:
    own = dict(model.environment()) if isinstance(model, SupportsEnvironment) else {}
    python = ".".join(map(str, sys.version_info[:3]))
    return own | {"gradaudit": _own_version(), "numpy": np.__version__, "python": python}


def _parameters(evidence: Evidence, judged: Measurement | None) -> tuple[ParameterResult, ...]:
    base = evidence.baseline
    results = [_placed(_parameter(spec, judged, evidence), base, evidence.places.get(spec.name)) for spec in base.specs]
    severity = list(Verdict)
    return tuple(sorted(results, key=lambda p: (-severity.index(p.verdict), -_sortable(p.relative_error))))


def _placed(result: ParameterResult, base: Baseline, place: Located | None) -> ParameterResult:
    gradient = base.gradients[result.name]
    if place is None or gradient is None or place.kind == "not found":
        return result
    wrong = tuple(
        WrongEntry(index=index, analytic=float(gradient[index]), numeric=float(gradient[index]) - error)
        for index, error in zip(place.entries, place.errors, strict=True)
    )
    return replace(result, where=place.where, wrong=wrong)


def _sortable(value: float) -> float:
    return value if np.isfinite(value) else float("inf")


def _parameter(spec: ParameterSpec, judged: Measurement | None, evidence: Evidence) -> ParameterResult:
    gradient = evidence.baseline.gradients[spec.name]
    norm = 0.0 if gradient is None else float(np.linalg.norm(gradient.astype(np.float64)))
    missing = gradient is None
    directions = judged.of(spec.name) if judged is not None else []
    if judged is None or not directions:
        return ParameterResult(
            name=spec.name,
            shape=spec.shape,
            dtype=spec.dtype,
            verdict=Verdict.INCONCLUSIVE,
            analytic_size=norm,
            numeric_size=float("nan"),
            relative_error=float("nan"),
            ratio=float("nan"),
            resolution=float("inf"),
            missing=missing,
        )
    entries = _entries(spec, judged.of(spec.name, entries=True), judged.verdicts[spec.name])
    ratio = least_squares_ratio(directions + judged.of(spec.name, entries=True))
    if spec.name in judged.unread and spec.name in evidence.right and plan.is_small(spec.size):
        assert gradient is not None  # it was compared with the right one
        entries = _entries_beside(gradient, evidence.right[spec.name])
        square = float(np.square(entries.numeric).sum())
        ratio = float(np.dot(entries.analytic, entries.numeric)) / square if square > 0 else float("nan")
    if entries is not None:
        analytic, numeric = np.array(entries.analytic), np.array(entries.numeric)
        sizes = norm, float(np.linalg.norm(numeric))
        error, largest = float(np.linalg.norm(analytic - numeric)), max(sizes)
        relative = error / largest if largest > 0 else 0.0
    else:
        last = max(directions, key=lambda c: c.relative_error)
        sizes, relative = (abs(last.analytic), abs(last.numeric)), last.relative_error
    return ParameterResult(
        name=spec.name,
        shape=spec.shape,
        dtype=spec.dtype,
        verdict=judged.verdicts[spec.name],
        analytic_size=sizes[0],
        numeric_size=sizes[1],
        relative_error=relative,
        ratio=ratio,
        resolution=judged.resolutions[spec.name],
        missing=missing,
        entries=entries,
    )


def _entries_beside(gradient: Array, right: Array) -> Entries:
    """The entries beside those of a gradient that an experiment has shown to be right."""
    analytic, numeric = (np.asarray(g, np.float64).ravel() for g in (gradient, right))
    bound = float(unequal(gradient) * np.abs(analytic - numeric).max())
    return Entries(
        analytic=tuple(analytic.tolist()),
        numeric=tuple(numeric.tolist()),
        bound=(bound,) * gradient.size,
        verdict=tuple(Verdict.DISAGREE if wrong else Verdict.AGREE for wrong in np.abs(analytic - numeric) > bound),
    )


def _entries(spec: ParameterSpec, comparisons: list[Comparison], verdict: Verdict) -> Entries | None:
    """The entries of a tensor; one that a single look condemned is open where the tensor is not condemned."""
    by_index = {c.direction.entry: c for c in comparisons}  # a full estimate comes later and replaces the first look
    if len(by_index) < spec.size:
        return None
    ordered = [by_index[index] for index in np.ndindex(spec.shape)]
    pairs = [(c, c.direction.length) for c in ordered]
    return Entries(
        analytic=tuple(c.analytic / length for c, length in pairs),
        numeric=tuple(c.numeric / length for c, length in pairs),
        bound=tuple(c.bound / length for c, length in pairs),
        verdict=tuple(
            Verdict.INCONCLUSIVE if c.verdict is Verdict.DISAGREE and verdict is not Verdict.DISAGREE else c.verdict
            for c in ordered
        ),
    )
