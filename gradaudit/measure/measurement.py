"""The numbers for one model: plan, estimate, confirm, look closer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from gradaudit.arrays import Array, Gradients, Scalar
from gradaudit.compare import Comparison, Verdict, worst
from gradaudit.direction import Direction
from gradaudit.measure import looks, plan
from gradaudit.measure.judgement import Line, Measurement, judge, precision_of
from gradaudit.measure.localise import Gap, Located, localise
from gradaudit.measure.path import along_paths
from gradaudit.measure.plan import Probe
from gradaudit.measure.sources import Source, choose, rounds_inside, stands_still
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.numeric.complex_step import agrees, complex_step
from gradaudit.numeric.estimate import DerivativeEstimate, Known, estimate, follow_up
from gradaudit.numeric.sampler import Sampler
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model, SupportsComplexStep, SupportsRules

__all__ = ["further", "locate", "measured", "with_entries"]

#: Where the wrong entries are is worth this many directions, eight evaluations each.
_MOST_DIRECTIONS = 200
#: Noise of a float64 loss, relative, that float32 inside would make; its own is a thousand times smaller.
_NOISY = 1e-13
#: An error that a look claims would have shown along paths that resolve this share of it.
_INFORMS = 0.25


def measured(model: Model, loss: Scalar, gradients: Gradients, options: AuditOptions, budget: Budget) -> Measurement:
    """A gradient against the numbers of the best source that there is.

    A twin that computes in float32 somewhere inside condemns nobody: then the native loss is asked. Nor does a float64
    loss that does, where the steps were too short to show it. A twin that stands still where the native loss moves
    tells nothing.

    Args:
        model: whose losses are measured.
        loss: at its base point.
        gradients: to be judged.
        options: of the audit.
        budget: of the audit.
    """
    source = choose(model, loss, gradients, budget, seed=options.seed)
    found = measure(source, gradients, options, budget)
    try:
        still = [] if source.reference is None else _still(found)
        if still and stands_still(model, loss, source, still, budget, options.seed):
            source = choose(model, loss, gradients, budget, seed=options.seed, twin=False)
            found = measure(source, gradients, options, budget)
        if found.verdict is Verdict.AGREE:
            return found
        if source.reference is not None:
            if _noisy(found) and rounds_inside(source, budget, options.seed):
                native = choose(model, loss, gradients, budget, seed=options.seed, twin=False)
                found = measure(native, gradients, options, budget)
        elif source.dtype == "float64" and (
            _coarse(found) or (_stands_still(found) and rounds_inside(source, budget, options.seed))
        ):
            single = replace(source, name=f"{source.name}, with float32 inside", dtype="float32")
            found = measure(single, gradients, options, budget)
        if found.source.dtype != "float64":
            found = _over_paths(found, options, budget)
    except Stop:
        return replace(found, complete=False)
    return found


def _over_paths(found: Measurement, options: AuditOptions, budget: Budget) -> Measurement:
    """What bare float32 losses leave open, or condemn beside kinks, judged along paths: it clears, never condemns."""
    lengths = _lengths(found)
    verdicts, resolutions = dict(found.verdicts), dict(found.resolutions)
    for name, verdict in found.verdicts.items():
        own = found.of(name)
        if verdict is Verdict.AGREE or not own:
            continue
        along = along_paths(found.source.model, name, lengths[name], budget, options.seed)
        scale = float(np.median([c.scale for c in own]))
        gaps = [abs(c.analytic - c.numeric) for c in own + found.of(name, entries=True)]
        claimed = max(gaps) / scale if scale > 0 else 0.0
        if not along.holds or (verdict is Verdict.DISAGREE and not along.resolution < _INFORMS * claimed):
            continue
        resolutions[name] = min(resolutions[name], along.resolution)
        verdicts[name] = Verdict.AGREE if found.would_do(along.resolution) else Verdict.INCONCLUSIVE
    # what two directions of the whole model condemn, and no tensor alone, no path of a tensor clears
    together = found.verdict is Verdict.DISAGREE and Verdict.DISAGREE not in found.verdicts.values()
    verdict = Verdict.DISAGREE if together else worst(verdicts.values())
    return replace(found, verdicts=verdicts, resolutions=resolutions, verdict=verdict)


def _still(found: Measurement) -> list[str]:
    """The tensors with which the loss does not move, at least nearby."""
    lines = {n: [line for line in found.lines if line.probe.tensor == n] for n in found.verdicts}
    return [n for n, own in lines.items() if own and all(line.estimate.constant or line.estimate.still for line in own)]


def _noisy(found: Measurement) -> bool:
    """Whether the losses are known to fewer digits than float64 has."""
    full = [line.estimate for line in found.lines if line.full and np.isfinite(line.estimate.bound)]
    return max((e.sigma / abs(e.base) if e.base else np.inf for e in full), default=0.0) > _NOISY


def _coarse(found: Measurement) -> bool:
    """Whether a tensor enters the loss with fewer digits, which the first look, by which others go, did not see."""
    seen = [line.estimate.status == "low precision inside" for line in found.lines]
    return any(seen) and not seen[0]


def _stands_still(found: Measurement) -> bool:
    """Whether a gradient that is condemned claims a slope where there is none."""
    return any(c.verdict is Verdict.DISAGREE and abs(c.numeric) <= c.bound for c in found.comparisons)


def measure(source: Source, gradients: Gradients, options: AuditOptions, budget: Budget) -> Measurement:
    """Probe the losses of ``source`` until the gradient is judged, tensor by tensor.

    A first full estimate of the whole model teaches noise and step. Then every tensor is asked for at once, eight
    evaluations a line; of a small tensor that moves nothing by steps of its own size, again by steps of the others'.
    Where a tensor does not agree, its entries are read if it is small, and a look along a fresh direction confirms or
    clears it: another eight where the first estimate is wrong as well, else a full estimate. Entries of what is
    condemned wait where an experiment may yet tell them: see `Measurement.unread`.
    """
    parameters = {name: p for name, p in source.model.parameters().items() if name in gradients}
    usable = {n: g if g is None or np.isfinite(g).all() else None for n, g in gradients.items()}
    every = usable | {n: None for n in source.model.parameters() if n not in gradients}
    sampler = _sampler(source, every, options, budget)
    lengths = plan.scales(parameters)
    lines: list[Line] = []
    unread: list[str] = []
    double, complete = source.dtype == "float64", True

    @cache
    def judged(n: int) -> Measurement:  # by the first n lines: they only become more
        return judge(lines[:n], gradients, source, options)

    try:
        (first,) = _full(sampler, [plan.whole_model(lengths, options.seed)])
        # the same seed draws the same direction: that of the only tensor has been measured
        alone = double and len(lengths) == 1 and first.estimate.smooth
        lines.append(replace(first, probe=replace(first.probe, tensor=next(iter(lengths)))) if alone else first)
        seen = judged(len(lines))
        # nothing cancels along the gradient, which finds what is faint; what the first look sees is not
        signs = plan.along_signs(lengths, usable, options.seed)
        faint = seen.comparisons[0].verdict is not Verdict.DISAGREE or not double
        tensors = [] if alone else plan.second_stage(lengths, usable, options.seed, double=double)
        probes = [*(signs if faint else []), *tensors]
        if options.entries:
            probes += plan.entries(parameters, lengths, list(parameters))
        ask = _cheap_looks(sampler, source.model, lines[0], budget)
        lines += ask(probes)
        seen = judged(len(lines))
        if longer := plan.longer(parameters, seen.unmoved()):
            stepped = ask(plan.second_stage(longer, usable, options.seed, double=double))
            told = looks.told(judge([lines[0], *stepped], gradients, source, options))
            lengths = lengths | {n: longer[n] for n in told}  # those of the directions before stay
            lines[:] = [li for li in lines if li.probe.tensor not in told]
            lines += [li for li in stepped if li.probe.tensor in told]
            judged.cache_clear()
            seen = judged(len(lines))
        doubted = [*seen.nearly_condemned(), *seen.suspected()] if double else []
        again = plan.fresh(lengths, doubted, options.seed + 1)
        names = [p.tensor for p in again if p.tensor is not None]
        small = [n for n, v in seen.verdicts.items() if v is not Verdict.AGREE and n not in names]
        if options.entries:  # all have been read
            names, small = [], []
        entries = plan.entries(parameters, lengths, small)
        lines += ask([*looks.blind(seen, gradients, lengths, options, 0), *again, *entries])
        seen = judged(len(lines))
        if isinstance(source.model, SupportsRules):
            unread = [n for n in names if seen.verdicts[n] is Verdict.DISAGREE]
        still = [] if faint or seen.verdict is Verdict.DISAGREE else signs
        entries = plan.entries(parameters, lengths, [n for n in names if n not in unread])
        lines += ask([*still, *looks.blind(seen, gradients, lengths, options, 1), *entries])
        last = judged(len(lines))
        lines += _full(sampler, [*looks.doubtful(last, lengths, options), *looks.hidden(last, lengths, options)])
    except Stop:
        complete = False
    return replace(judged(len(lines)), complete=complete, unread=tuple(unread))


def _lengths(measured: Measurement) -> dict[str, float | Array]:
    """The steps that the tensors were measured in."""
    lengths = plan.scales(measured.source.model.parameters())
    for line in measured.lines:
        if line.probe.tensor is not None and line.probe.direction.entry is None:
            lengths[line.probe.tensor] = line.probe.direction.scales[line.probe.tensor]
    return lengths


def with_entries(
    measured: Measurement, gradients: Gradients, names: Sequence[str], options: AuditOptions, budget: Budget
) -> Measurement:
    """The same, and the entries of those of these tensors that are `Measurement.unread`.

    Raises:
        Stop: the budget is spent.
    """
    unread = [name for name in measured.unread if name in names]
    if not unread:
        return measured
    parameters = measured.source.model.parameters()
    probes = plan.entries(parameters, _lengths(measured), unread)
    lines = [*measured.lines, *_followed(measured, probes, "reading entries", options, budget)]
    comparisons = judge(lines, gradients, measured.source, options).comparisons
    left = tuple(name for name in measured.unread if name not in unread)
    return replace(measured, lines=tuple(lines), comparisons=comparisons, unread=left)


def locate(
    measured: Measurement, gradients: Gradients, name: str, options: AuditOptions, budget: Budget
) -> Located | None:
    """Where a large tensor is wrong, with follow-ups along directions of this tensor alone; None without a good step.

    Raises:
        Stop: the budget is spent.
    """
    known = _known(measured.lines[0].estimate) if measured.lines else None
    gradient = gradients[name]
    if known is None or gradient is None or not np.isfinite(gradient).all():
        return None
    source = measured.source
    sampler = _sampler(source, dict.fromkeys(source.model.parameters()), options, budget)
    precision = precision_of(len(measured.lines), gradients, source, options, own=True)

    def gaps(directions: Sequence[Direction]) -> list[Gap]:
        found = follow_up(sampler, directions, known, "localising")
        return [
            Gap(value=d.dot(gradients) - e.value, bound=e.bound + precision.rounding(d, gradients))
            for d, e in zip(directions, found, strict=True)
        ]

    return localise(gaps, name, gradient.shape, _lengths(measured)[name], seed=options.seed, most=_MOST_DIRECTIONS)


def further(
    measured: Measurement, gradients: Gradients, probes: Sequence[Probe], options: AuditOptions, budget: Budget
) -> list[Comparison]:
    """The gradient along more directions, with follow-ups; empty without a good step.

    Raises:
        Stop: the budget is spent.
    """
    lines = _followed(measured, probes, "diagnosing", options, budget)
    if not lines:
        return []
    return list(judge([measured.lines[0], *lines], gradients, measured.source, options).comparisons[1:])


def _followed(
    measured: Measurement, probes: Sequence[Probe], purpose: str, options: AuditOptions, budget: Budget
) -> list[Line]:
    """Follow-ups along more directions; empty without a good step."""
    known = _known(measured.lines[0].estimate) if measured.lines else None
    if known is None or not probes:
        return []
    sampler = _sampler(measured.source, dict.fromkeys(measured.source.model.parameters()), options, budget)
    found = follow_up(sampler, [p.direction for p in probes], known, purpose)
    return [Line(probe, e, full=False) for probe, e in zip(probes, found, strict=True)]


def _sampler(source: Source, gradients: Gradients, options: AuditOptions, budget: Budget) -> Sampler:
    return Sampler(
        source.model,
        budget,
        gradients=gradients,
        batch_bytes=options.batch_bytes,
        dtype=source.dtype,
        digits=source.digits,
    )


def _full(sampler: Sampler, probes: Sequence[Probe]) -> list[Line]:
    found = estimate(sampler, [p.direction for p in probes], "probing") if probes else []
    return [Line(probe, e, full=True) for probe, e in zip(probes, found, strict=True)]


def _cheap_looks(
    sampler: Sampler, model: Model, first: Line, budget: Budget
) -> Callable[[Sequence[Probe]], list[Line]]:
    """How further directions are estimated: by complex steps, by follow-ups, or in full where nothing is known."""

    def ask(probes: Sequence[Probe]) -> list[Line]:
        directions = [p.direction for p in probes]
        if analytic and isinstance(model, SupportsComplexStep):
            found = complex_step(model, sampler.parameters, directions, first.estimate, budget)
        elif known is not None:
            found = follow_up(sampler, directions, known, "probing")
        else:
            return _full(sampler, [p for p in probes if p.direction.entry is None])
        return [Line(probe, e, full=analytic) for probe, e in zip(probes, found, strict=True)]

    known = _known(first.estimate)
    analytic = isinstance(model, SupportsComplexStep) and _is_analytic(model, sampler, first, budget)
    return ask


def _is_analytic(model: SupportsComplexStep, sampler: Sampler, first: Line, budget: Budget) -> bool:
    """Whether complex steps may replace differences: the model offers them, and the first agrees with the ladder."""
    if not np.isfinite(first.estimate.bound):
        return False
    if model.complex_loss(sampler.parameters) is None:
        return False
    budget.take(1, "complex step")
    (found,) = complex_step(model, sampler.parameters, [first.probe.direction], first.estimate, budget)
    return agrees(found, first.estimate)


def _known(first: DerivativeEstimate) -> Known | None:
    if not np.isfinite(first.bound):
        return None
    return Known(sigma=first.sigma, base=first.base, step=first.step)
