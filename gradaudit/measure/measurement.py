"""Analytic against numeric, for one model: plan, estimate, compare, confirm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradaudit.arrays import Array, Gradients, eps
from gradaudit.compare import Comparison, Precision, Verdict, compare, worst
from gradaudit.measure import plan
from gradaudit.measure.plan import Probe
from gradaudit.measure.sources import Source
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.numeric.estimate import DerivativeEstimate, Known, estimate, follow_up
from gradaudit.numeric.sampler import Sampler
from gradaudit.options import AuditOptions

__all__ = ["Line", "Measurement", "judge", "measure"]


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
        verdicts: by tensor.
        verdict: of the whole gradient.
        source: who supplied the numbers.
        complete: False where the budget ended first.
    """

    lines: tuple[Line, ...]
    comparisons: tuple[Comparison, ...]
    verdicts: dict[str, Verdict]
    verdict: Verdict
    source: Source
    complete: bool

    def of(self, tensor: str | None, *, entries: bool = False) -> list[Comparison]:
        """The comparisons of one tensor (None: the whole model), those along directions or those of its entries."""
        pairs = zip(self.lines, self.comparisons, strict=True)
        return [c for line, c in pairs if line.probe.tensor == tensor and (c.direction.entry is not None) == entries]

    @property
    def resolution(self) -> float:
        """The worst resolution among the tensors."""
        return max((min(c.resolution for c in self.of(name)) for name in self.verdicts if self.of(name)), default=0.0)


def measure(source: Source, gradients: Gradients, options: AuditOptions, budget: Budget) -> Measurement:
    """Probe the losses of ``source`` until the gradient is judged, tensor by tensor.

    A first full estimate of the whole model teaches noise and step; everything else is asked for at once, eight
    evaluations a line. What disagrees is confirmed by a full estimate on a fresh direction; what is open gets one too.
    """
    parameters = {name: p for name, p in source.model.parameters().items() if name in gradients}
    usable = {n: g if g is None or np.isfinite(g).all() else None for n, g in gradients.items()}
    every = usable | {n: None for n in source.model.parameters() if n not in gradients}
    sampler = Sampler(source.model, budget, gradients=every, batch_bytes=options.batch_bytes, dtype=source.dtype)
    lengths = plan.scales(parameters)
    lines: list[Line] = []
    names = list(parameters)
    complete = True
    try:
        first = plan.whole_model(lengths, options.seed)
        lines += _full(sampler, [first])
        known = _known(lines[0].estimate)
        signs = plan.along_signs(lengths, usable, options.seed)
        probes = [
            *([signs] if signs else []),
            *plan.tensors(lengths, names, options.seed),
            *plan.entries(parameters, lengths, names),
        ]
        if known is None:
            lines += _full(sampler, [p for p in probes if p.direction.entry is None])
        else:
            found = follow_up(sampler, [p.direction for p in probes], known, "probing")
            lines += [Line(probe, e, full=False) for probe, e in zip(probes, found, strict=True)]
        lines += _full(sampler, _doubtful(judge(lines, gradients, source, options), lengths, options))
    except Stop:
        complete = False
    return replace(judge(lines, gradients, source, options), complete=complete)


def judge(lines: Sequence[Line], gradients: Gradients, source: Source, options: AuditOptions) -> Measurement:
    """Compare a gradient with numbers that are already there."""
    dtypes = [g.dtype for g in gradients.values() if g is not None] or [np.dtype(source.dtype)]
    precision = Precision(analytic=max(eps(d) for d in dtypes), numeric=eps(source.dtype))
    whole = max((line.probe.direction.norm(gradients) for line in lines if line.probe.tensor is None), default=0.0)
    comparisons = tuple(
        compare(
            line.probe.direction,
            line.estimate,
            gradients,
            precision=precision,
            whole=whole if np.isfinite(whole) else 0.0,
            significant=options.significant,
        )
        for line in lines
    )
    pairs = list(zip(lines, comparisons, strict=True))
    verdicts = {n: _tensor_verdict([(li, c) for li, c in pairs if li.probe.tensor == n]) for n in gradients}
    for name, gradient in gradients.items():
        if gradient is not None and not np.isfinite(gradient).all():
            numeric = [c for line, c in pairs if line.probe.tensor == name and np.isfinite(c.numeric)]
            verdicts[name] = Verdict.DISAGREE if numeric else Verdict.INCONCLUSIVE
    together = [c.verdict for line, c in pairs if line.probe.tensor is None]
    verdict = worst(verdicts.values())
    if together.count(Verdict.DISAGREE) > 1:  # two directions see what no tensor alone resolves
        verdict = Verdict.DISAGREE
    return Measurement(
        lines=tuple(lines),
        comparisons=comparisons,
        verdicts=verdicts,
        verdict=verdict,
        source=source,
        complete=True,
    )


def _full(sampler: Sampler, probes: Sequence[Probe]) -> list[Line]:
    found = estimate(sampler, [p.direction for p in probes], "probing") if probes else []
    return [Line(probe, e, full=True) for probe, e in zip(probes, found, strict=True)]


def _known(first: DerivativeEstimate) -> Known | None:
    if not np.isfinite(first.bound):
        return None
    return Known(sigma=first.sigma, base=first.base, step=first.step)


def _doubtful(measured: Measurement, lengths: dict[str, float | Array], options: AuditOptions) -> list[Probe]:
    """What a full estimate must look at: a fresh direction where a tensor is condemned, the same where it is open."""
    probes: list[Probe] = []
    for name in measured.verdicts:
        looks = [c for c in measured.of(name) if c.verdict is not Verdict.AGREE]
        full = {id(line.probe.direction) for line in measured.lines if line.full}
        wrong = [c for c in measured.of(name, entries=True) if c.verdict is Verdict.DISAGREE]
        if looks:
            again = [c for c in looks if c.verdict is Verdict.INCONCLUSIVE and id(c.direction) not in full]
            probes += [Probe(c.direction, name) for c in again]
            probes += plan.fresh(lengths, [name], options.seed)
        elif wrong:
            probes.append(Probe(max(wrong, key=lambda c: c.relative_error).direction, name))
    return probes


def _tensor_verdict(pairs: Iterable[tuple[Line, Comparison]]) -> Verdict:
    """Condemned by two directions, or by one entry looked at twice; cleared by the best look taken."""
    pairs = list(pairs)
    full = [c.verdict for line, c in pairs if c.direction.entry is None and line.full]
    first = [c.verdict for line, c in pairs if c.direction.entry is None and not line.full]
    entry = [c.verdict for line, c in pairs if c.direction.entry is not None and line.full]
    if Verdict.DISAGREE in entry or (Verdict.DISAGREE in full and (full + first).count(Verdict.DISAGREE) > 1):
        return Verdict.DISAGREE
    looks = full or first
    if looks and all(verdict is Verdict.AGREE for verdict in looks):
        return Verdict.AGREE
    return Verdict.INCONCLUSIVE
