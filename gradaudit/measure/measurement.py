"""Analytic against numeric, for one model: plan, estimate, compare, confirm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradaudit.arrays import Array, Gradients, eps
from gradaudit.compare import Comparison, Precision, Verdict, caution, compare, detectable, worst
from gradaudit.direction import Direction
from gradaudit.measure import plan
from gradaudit.measure.localise import Gap, Located, localise
from gradaudit.measure.plan import Probe
from gradaudit.measure.sources import Source
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.numeric.complex_step import agrees, complex_step
from gradaudit.numeric.estimate import DerivativeEstimate, Known, estimate, follow_up
from gradaudit.numeric.sampler import Sampler
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model, SupportsComplexStep

__all__ = ["Line", "Measurement", "judge", "locate", "measure"]

#: The relative error that matters, unless the user says otherwise: bare float32 losses rarely resolve 1e-3.
_SIGNIFICANT, _SIGNIFICANT_SINGLE = 1e-3, 1e-2
#: A derivative exists where the bound is this small beside it; near an infinite slope it is not.
_EXISTS = 0.01
#: Where the wrong entries are is worth this many directions, eight evaluations each.
_MOST_DIRECTIONS = 200
#: More directions of one tensor than this do not help: then the bounds are too coarse.
_MOST_MORE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A numeric derivative along a probe.

    Attributes:
        full: a full estimate, good enough to condemn; otherwise a follow-up.
    """

    probe: Probe
    estimate: DerivativeEstimate
    full: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """What was measured of one loss, and what it says of one gradient.

    Attributes:
        lines: numeric derivatives, in the order they were asked for.
        comparisons: one a line.
        resolutions: by tensor, the relative error that would have been seen with a probability of 99 %.
        verdicts: by tensor.
        verdict: of the whole gradient.
        significant: the relative error that matters.
        source: who supplied the numbers.
        complete: False where the budget ended first.
    """

    lines: tuple[Line, ...]
    comparisons: tuple[Comparison, ...]
    resolutions: dict[str, float]
    verdicts: dict[str, Verdict]
    verdict: Verdict
    significant: float
    source: Source
    complete: bool

    def of(self, tensor: str | None, *, entries: bool = False) -> list[Comparison]:
        """The comparisons of one tensor (None: the whole model), those along directions or those of its entries."""
        pairs = zip(self.lines, self.comparisons, strict=True)
        return [c for line, c in pairs if line.probe.tensor == tensor and (c.direction.entry is not None) == entries]

    def needs(self, name: str) -> bool:
        """Whether an error of this tensor that matters could have gone unseen."""
        return not self.would_do(self.resolutions[name])

    def would_do(self, resolution: float) -> bool:
        """Whether a resolution is fine enough."""
        return resolution <= self.significant

    @property
    def resolution(self) -> float:
        """The worst resolution among the tensors."""
        return max(self.resolutions.values(), default=0.0)


def measure(source: Source, gradients: Gradients, options: AuditOptions, budget: Budget) -> Measurement:
    """Probe the losses of ``source`` until the gradient is judged, tensor by tensor.

    A first full estimate of the whole model teaches noise and step. Then every tensor is asked for at once, eight
    evaluations a line. Where a tensor does not agree, its entries are read if it is small, and a full estimate on a
    fresh direction confirms or clears it.
    """
    parameters = {name: p for name, p in source.model.parameters().items() if name in gradients}
    usable = {n: g if g is None or np.isfinite(g).all() else None for n, g in gradients.items()}
    every = usable | {n: None for n in source.model.parameters() if n not in gradients}
    sampler = _sampler(source, every, options, budget)
    lengths = plan.scales(parameters)
    lines: list[Line] = []
    complete = True
    try:
        lines += _full(sampler, [plan.whole_model(lengths, options.seed)])
        probes = plan.second_stage(lengths, usable, options.seed, double=source.dtype == "float64")
        if options.entries:
            probes += plan.entries(parameters, lengths, list(parameters))
        ask = _cheap_looks(sampler, source.model, lines[0], budget)
        lines += ask(probes)
        seen = judge(lines, gradients, source, options)
        small = [] if options.entries else [n for n, v in seen.verdicts.items() if v is not Verdict.AGREE]
        lines += ask([*_blind(seen, lengths, options), *plan.entries(parameters, lengths, small)])
        lines += _full(sampler, _doubtful(judge(lines, gradients, source, options), lengths, options))
    except Stop:
        complete = False
    return replace(judge(lines, gradients, source, options), complete=complete)


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
    precision = _precision(len(measured.lines), gradients, source, options, own=True)
    whole = max((line.probe.direction.norm(gradients) for line in measured.lines[:1]), default=0.0)

    def gaps(directions: Sequence[Direction]) -> list[Gap]:
        found = follow_up(sampler, directions, known, "localising")
        return [
            Gap(value=d.dot(gradients) - e.value, bound=e.bound + precision.rounding(d, gradients, whole))
            for d, e in zip(directions, found, strict=True)
        ]

    scale = plan.scales({name: sampler.parameters[name]})[name]
    return localise(gaps, name, gradient.shape, scale, seed=options.seed, most=_MOST_DIRECTIONS)


def _sampler(source: Source, gradients: Gradients, options: AuditOptions, budget: Budget) -> Sampler:
    return Sampler(
        source.model,
        budget,
        gradients=gradients,
        batch_bytes=options.batch_bytes,
        dtype=source.dtype,
        digits=source.digits,
    )


def judge(
    lines: Sequence[Line], gradients: Gradients, source: Source, options: AuditOptions, *, own: bool = True
) -> Measurement:
    """Compare a gradient with numbers that are already there.

    Args:
        lines: the numbers.
        gradients: the analytic gradient.
        source: who supplied the numbers.
        options: of the audit.
        own: whether the source's reference and jittered gradients belong to this gradient (not to a derived one).
    """
    precision = _precision(len(lines), gradients, source, options, own=own)
    whole = max((line.probe.direction.norm(gradients) for line in lines if line.probe.tensor is None), default=0.0)
    significant = options.significant or (_SIGNIFICANT if source.dtype == "float64" else _SIGNIFICANT_SINGLE)
    comparisons = tuple(
        compare(
            line.probe.direction,
            line.estimate,
            gradients,
            precision=precision,
            whole=whole if np.isfinite(whole) else 0.0,
            significant=significant,
        )
        for line in lines
    )
    pairs = list(zip(lines, comparisons, strict=True))
    by_tensor = {n: [(li, c) for li, c in pairs if li.probe.tensor == n] for n in gradients}
    resolutions = {n: _resolution(by_tensor[n], g) for n, g in gradients.items()}
    sizes = {n: p.size for n, p in source.model.parameters().items()}
    verdicts = {n: _tensor_verdict(by_tensor[n], sizes[n], resolved=resolutions[n] <= significant) for n in gradients}
    for name, gradient in gradients.items():
        if gradient is not None and not np.isfinite(gradient).all():
            numeric = [e for line, _ in by_tensor[name] if (e := line.estimate).bound <= _EXISTS * abs(e.value)]
            verdicts[name] = Verdict.DISAGREE if numeric else Verdict.INCONCLUSIVE
    together = [c.verdict for line, c in pairs if line.probe.tensor is None]
    verdict = worst(verdicts.values())
    if together.count(Verdict.DISAGREE) > 1:  # two directions see what no tensor alone resolves
        verdict = Verdict.DISAGREE
    return Measurement(
        lines=tuple(lines),
        comparisons=comparisons,
        resolutions=resolutions,
        verdicts=verdicts,
        verdict=verdict,
        significant=significant,
        source=source,
        complete=True,
    )


def _precision(n: int, gradients: Gradients, source: Source, options: AuditOptions, *, own: bool) -> Precision:
    dtypes = [g.dtype for g in gradients.values() if g is not None] or [np.dtype(source.dtype)]
    numeric = eps(source.dtype)
    return Precision(
        analytic=max(eps(d) for d in dtypes),
        numeric=numeric,
        reference=source.reference if own else None,
        jittered=source.jittered if own else (),
        caution=caution(numeric, options.false_alarm, n),
    )


def _resolution(pairs: Sequence[tuple[Line, Comparison]], gradient: Array | None) -> float:
    """The relative error of a tensor that would have been seen, by its entries or by its directions."""
    directions = [c.resolution for _, c in pairs if c.direction.entry is None and c.direction.signs is None]
    if not directions:
        return float("inf")
    spread = detectable(directions)
    read = [c for _, c in pairs if c.direction.entry is not None]
    norm = 0.0 if gradient is None else float(np.linalg.norm(gradient.astype(np.float64)))
    size = gradient.size if gradient is not None else 0
    if not size or len({c.direction.entry for c in read}) < size or norm == 0 or any(np.isinf(c.bound) for c in read):
        return spread if norm > 0 else min(directions)
    # an error of this relative size has an entry at least as large as the coarsest threshold of all
    coarsest = max(c.resolution * c.scale / c.direction.length for c in read)
    return min(spread, float(np.sqrt(size)) * coarsest / norm)


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


def _doubtful(measured: Measurement, lengths: dict[str, float | Array], options: AuditOptions) -> list[Probe]:
    """What a full estimate must look at: a fresh direction where a tensor is condemned, the same where it is open."""
    probes: list[Probe] = []
    # a follow-up does not know a kink: what it condemns there, entry by entry, may be allowed
    kinked = any(line.estimate.status == "kink" for line in measured.lines)
    for name in measured.verdicts:
        looks = [c for c in measured.of(name) if c.verdict is not Verdict.AGREE]
        full = {id(line.probe.direction) for line in measured.lines if line.full}
        wrong = [c for c in measured.of(name, entries=True) if c.verdict is Verdict.DISAGREE]
        if kinked:
            probes += [Probe(c.direction, name) for c in wrong if id(c.direction) not in full]
        if looks:
            again = [c for c in looks if c.verdict is Verdict.INCONCLUSIVE and id(c.direction) not in full]
            probes += [Probe(c.direction, name) for c in again]
            probes += plan.fresh(lengths, [name], options.seed)
        elif wrong:
            probes.append(Probe(max(wrong, key=lambda c: c.relative_error).direction, name))
    return probes


def _blind(measured: Measurement, lengths: dict[str, float | Array], options: AuditOptions) -> list[Probe]:
    """More directions of tensors that agree, but where an error that matters could have cancelled in all of them."""
    probes: list[Probe] = []
    for name in measured.verdicts:
        looks = measured.of(name)
        seen = [c.resolution for c in looks if c.direction.signs is None]
        if any(c.verdict is Verdict.DISAGREE for c in looks) or not seen or not measured.needs(name):
            continue
        more = next((n for n in range(1, _MOST_MORE) if measured.would_do(detectable(seen + [max(seen)] * n))), 0)
        probes += plan.more(lengths, name, options.seed, more)
    return probes


def _tensor_verdict(pairs: Sequence[tuple[Line, Comparison]], size: int, *, resolved: bool) -> Verdict:
    """Condemned by two directions, or by an entry looked at twice; cleared by the best look, or entry by entry."""
    full = [c.verdict for line, c in pairs if c.direction.entry is None and line.full]
    first = [c.verdict for line, c in pairs if c.direction.entry is None and not line.full]
    entry = [c.verdict for line, c in pairs if c.direction.entry is not None and line.full]
    kinked = any(line.estimate.status == "kink" for line, _ in pairs)
    # a follow-up does not know a kink: at one it is no witness, neither for nor against
    witnesses = full if kinked else full + first
    if Verdict.DISAGREE in entry or (Verdict.DISAGREE in full and witnesses.count(Verdict.DISAGREE) > 1):
        return Verdict.DISAGREE
    looks = full or first
    latest = {c.direction.entry: c for _, c in pairs if c.direction.entry is not None}
    if latest and size == len(latest) and all(c.verdict is Verdict.AGREE for c in latest.values()):
        # entries clear what a kink in one of them leaves open along a direction
        return Verdict.AGREE
    # one direction in which an error cancels does not clear what another has condemned
    if resolved and looks and Verdict.DISAGREE not in witnesses and all(v is Verdict.AGREE for v in looks):
        return Verdict.AGREE
    return Verdict.INCONCLUSIVE
