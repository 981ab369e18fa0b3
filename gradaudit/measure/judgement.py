"""Verdicts from numbers that are there: analytic against numeric, line by line and tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gradaudit.arrays import Array, Gradients, eps
from gradaudit.compare import Comparison, Precision, Verdict, caution, compare, detectable, excluded, worst
from gradaudit.measure.plan import Probe
from gradaudit.measure.sources import Source
from gradaudit.numeric.estimate import DerivativeEstimate
from gradaudit.options import AuditOptions

__all__ = ["Line", "Measurement", "judge", "precision_of"]

#: The relative error that matters, unless the user says otherwise: bare float32 losses rarely resolve 1e-3.
_SIGNIFICANT, _SIGNIFICANT_SINGLE = 1e-3, 1e-2
#: A gradient that is meant to be computed in a narrower format is off by some of its eps: 5 % in bfloat16.
_SIGNIFICANT_NARROW = 6.4
#: A derivative exists where the bound is this small beside it; near an infinite slope it is not.
_EXISTS = 0.01
#: A full estimate with a coarser resolution resolves nothing.
_HOPELESS = 0.5
#: Beyond a hundred eps of float32 a float64 gradient is not wrong because of float32 constants inside.
_CONSTANTS = 1.2e-5
#: A gap that many times as large as what a kink may make is none of its making.
_KINK = 2.0
#: A gap of so many bounds is there, be it below what matters.
_PROVEN = 10.0
#: Random directions of a tensor of fewer entries are much alike.
_INDEPENDENT = 3


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
        beside: what the same numbers say of the twin's gradient, where there is a twin.
        unread: condemned tensors whose entries, if they are small, have not been read.
        still: the gradient is zero, and the loss does not move: near the base point, ``here``; also far away,
            ``everywhere``; empty: it is not so.
    """

    lines: tuple[Line, ...]
    comparisons: tuple[Comparison, ...]
    resolutions: dict[str, float]
    verdicts: dict[str, Verdict]
    verdict: Verdict
    significant: float
    source: Source
    complete: bool
    beside: Measurement | None = None
    unread: tuple[str, ...] = ()
    still: Literal["", "here", "everywhere"] = ""

    def of(self, tensor: str | None, *, entries: bool = False) -> list[Comparison]:
        """The comparisons of one tensor (None: the whole model), those along directions or those of its entries."""
        pairs = zip(self.lines, self.comparisons, strict=True)
        return [c for line, c in pairs if line.probe.tensor == tensor and (c.direction.entry is not None) == entries]

    def gaps(self, name: str, gradient: Array | None) -> list[float]:
        """The relative gaps along random directions of a tensor, where they are independent."""
        pairs = zip(self.lines, self.comparisons, strict=True)
        return _random_gaps([(li, c) for li, c in pairs if li.probe.tensor == name], gradient)

    def needs(self, name: str) -> bool:
        """Whether an error of this tensor that matters could have gone unseen."""
        return not self.would_do(self.resolutions[name])

    def would_do(self, resolution: float) -> bool:
        """Whether a resolution is fine enough."""
        return resolution <= self.significant

    def unmoved(self) -> list[str]:
        """The tensors along whose random directions there is nothing to see."""
        looks = {name: [c for c in self.of(name) if c.direction.signs is None] for name in self.verdicts}
        return [name for name, own in looks.items() if own and all(c.unmoved for c in own)]

    def nearly_condemned(self) -> list[str]:
        """The tensors that one more first look would condemn, and no two looks have yet, whatever rounding says."""
        pairs = list(zip(self.lines, self.comparisons, strict=True))
        if not _whole_wrong(pairs):
            return []
        names = [n for n, verdict in self.verdicts.items() if verdict is not Verdict.DISAGREE or len(self.of(n)) == 1]
        return [name for name in names if _proofs([(li, c) for li, c in pairs if li.probe.tensor == name])]

    def suspected(self) -> list[str]:
        """The tensors that agree, in which a gap that is proven may be all that a larger error shows along a direction.

        Those that show it; where only directions of all tensors do, each of them.
        """
        seen = self if self.beside is None else self.beside
        pairs = [(li.probe.tensor, c) for li, c in zip(seen.lines, seen.comparisons, strict=True) if li.estimate.smooth]
        shown = {tensor for tensor, c in pairs if abs(c.analytic - c.numeric) > _PROVEN * c.bound}
        names = [name for name in self.verdicts if name in shown] or (list(self.verdicts) if None in shown else [])
        return [name for name in names if self.verdicts[name] is Verdict.AGREE]

    @property
    def resolution(self) -> float:
        """The worst resolution among the tensors."""
        return max(self.resolutions.values(), default=0.0)


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
    precision = precision_of(len(lines), gradients, source, options, own=own)
    # the first line is of the whole model, whatever it is called
    together = [line for line in lines if line.probe.tensor is None or line is lines[0]]
    whole = max((line.probe.direction.norm(gradients) for line in together), default=0.0)
    usual = _SIGNIFICANT if source.dtype == "float64" else _SIGNIFICANT_SINGLE
    significant = options.significant or max(usual, _SIGNIFICANT_NARROW * source.narrow)
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
    beside = _of_reference(lines, gradients, source, options) if own and source.reference is not None else None
    if beside is not None:
        resolutions = _by_reference(resolutions, gradients, beside)
    sizes = {n: p.size for n, p in source.model.parameters().items()}
    whole_wrong = _whole_wrong(pairs)
    verdicts = {
        n: _tensor_verdict(by_tensor[n], sizes[n], resolved=resolutions[n] <= significant, whole_wrong=whole_wrong)
        for n in gradients
    }
    for name, gradient in gradients.items():
        if gradient is not None and not np.isfinite(gradient).all():
            numeric = [e for line, _ in by_tensor[name] if (e := line.estimate).bound <= _EXISTS * abs(e.value)]
            verdicts[name] = Verdict.DISAGREE if numeric else Verdict.INCONCLUSIVE
    if beside is not None:
        for name in [*_beyond_rounding(source, beside), *_wrong_in_double(beside)]:
            verdicts[name] = Verdict.DISAGREE
    # one of these is wrong: of several none is condemned, nor cleared
    related = [] if beside is None else _related(source, beside)
    least = Verdict.DISAGREE if len(related) == 1 else Verdict.INCONCLUSIVE
    verdicts |= {name: worst([verdicts[name], least]) for name in related}
    verdict = worst(verdicts.values())
    condemning = [line for line, c in pairs if line in together and c.verdict is Verdict.DISAGREE]
    if related or len(condemning) > 1:  # two directions see what no tensor alone resolves
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
        beside=beside,
    )


def _of_reference(lines: Sequence[Line], gradients: Gradients, source: Source, options: AuditOptions) -> Measurement:
    """The same numbers, and what they say of the twin's gradient: no float32 rounding on either side."""
    assert source.reference is not None  # see judge
    return judge(lines, {name: source.reference[name] for name in gradients}, source, options, own=False)


def _by_reference(resolutions: dict[str, float], gradients: Gradients, beside: Measurement) -> dict[str, float]:
    """The resolutions, finer where the twin's gradient is resolved: what the native one differs by is known.

    The native gradient's error is what it differs from the twin's, entry by entry, and the error of that.
    """
    reference = beside.source.reference or {}
    return {n: min(r, beside.resolutions[n] + _apart(gradients[n], reference[n])) for n, r in resolutions.items()}


def _wrong_in_double(beside: Measurement) -> list[str]:
    """The tensors whose twin, the same code in float64, has a wrong gradient: float32 rounding may hide that.

    Constants that the code holds in float32 do not make it wrong.
    """
    wrong = [name for name, verdict in beside.verdicts.items() if verdict is Verdict.DISAGREE]
    looks = {n: beside.of(n) + beside.of(n, entries=True) for n in wrong}
    return [n for n in wrong if max((c.relative_error for c in looks[n]), default=0.0) > _CONSTANTS]


def _apart(gradient: Array | None, reference: Array | None) -> float:
    """The relative difference of two gradients of a tensor."""
    if gradient is None or reference is None:
        return 0.0 if gradient is reference else float("inf")
    size = float(np.linalg.norm(reference))
    difference = float(np.linalg.norm(np.asarray(gradient, np.float64) - reference))
    return difference / size if size > 0 else 0.0 if difference == 0 else float("inf")


def _beyond_rounding(source: Source, beside: Measurement) -> list[str]:
    """The tensors whose float64 twin has the right gradient, from which the float32 one differs beyond rounding."""
    exceeding = [name for name, excess in (source.excess or {}).items() if excess is not None and excess.any()]
    return [name for name in exceeding if beside.verdicts.get(name) is Verdict.AGREE]


def _related(source: Source, beside: Measurement) -> list[str]:
    """The tensors one of which is wrong in float32, where the float64 twin has the right gradient."""
    right = all(verdict is Verdict.AGREE for verdict in beside.verdicts.values())
    return [name for name in source.related if name in beside.verdicts] if right else []


def precision_of(n: int, gradients: Gradients, source: Source, options: AuditOptions, *, own: bool) -> Precision:
    """How exactly both sides of n comparisons compute; ``own`` as for `judge`."""
    dtypes = [g.dtype for g in gradients.values() if g is not None] or [np.dtype(source.dtype)]
    numeric = eps(source.dtype)
    return Precision(
        analytic=max(eps(d) for d in dtypes),
        numeric=numeric,
        reference=source.reference if own else None,
        excess=(own and source.excess) or {},
        jittered=source.jittered if own else (),
        caution=caution(numeric, options.false_alarm, n),
    )


def _resolution(pairs: Sequence[tuple[Line, Comparison]], gradient: Array | None) -> float:
    """The relative error of a tensor that would have been seen, by its entries or by its directions."""
    directions = [c.resolution for _, c in pairs if c.direction.entry is None and c.direction.signs is None]
    if not directions:
        return float("inf")
    if gradient is not None and gradient.size == 1:
        return min(directions)  # nothing cancels in a single number
    spread = min(detectable(directions), excluded(_random_gaps(pairs, gradient)))
    read = [c for _, c in pairs if c.direction.entry is not None]
    norm = 0.0 if gradient is None else float(np.linalg.norm(gradient.astype(np.float64)))
    size = gradient.size if gradient is not None else 0
    if not size or len({c.direction.entry for c in read}) < size or norm == 0 or any(np.isinf(c.bound) for c in read):
        return spread if norm > 0 else min(directions)
    # an error of this relative size has an entry at least as large as the coarsest threshold of all
    coarsest = max(c.resolution * c.scale / c.direction.length for c in read)
    return min(spread, float(np.sqrt(size)) * coarsest / norm)


def _random_gaps(pairs: Sequence[tuple[Line, Comparison]], gradient: Array | None) -> list[float]:
    """Relative gaps along independent random directions; none where they are not, or where there is a kink or jump.

    In a tensor of very few entries directions are too much alike; one along the gradient is not random.
    """
    smooth = all(line.estimate.smooth for line, _ in pairs)
    if gradient is None or gradient.size < _INDEPENDENT or not smooth:
        return []
    looks = [c for _, c in pairs if c.direction.entry is None and c.direction.signs is None]
    # of a direction measured twice the full estimate counts
    latest = {id(c.direction): c for c in looks}
    return [c.relative_error for c in latest.values() if np.isfinite(c.bound)]


def _whole_wrong(pairs: Sequence[tuple[Line, Comparison]]) -> bool:
    """Whether the first look, a full estimate of the whole model, sees an error where the loss is smooth."""
    if not pairs:
        return False
    line, c = pairs[0]
    return line.full and c.verdict is Verdict.DISAGREE and line.estimate.smooth


def _proofs(pairs: Sequence[tuple[Line, Comparison]]) -> set[int]:
    """The directions of a tensor along which a full estimate sees an error, or a first look that is as good as one."""
    wrong = [(line, c) for line, c in pairs if c.verdict is Verdict.DISAGREE and c.direction.entry is None]
    return {id(c.direction) for line, c in wrong if line.full or _is_plain(line.estimate, c)}


def _is_plain(first: DerivativeEstimate, c: Comparison) -> bool:
    """Whether a first look shows all by itself that no kink makes the gap, and no loss that stands still so near."""
    return abs(c.analytic - c.numeric) > _KINK * first.bend and abs(first.value) > first.bound


def _tensor_verdict(
    pairs: Sequence[tuple[Line, Comparison]], size: int, *, resolved: bool, whole_wrong: bool
) -> Verdict:
    """Condemned by two directions, or by an entry looked at twice; cleared by the best look, or entry by entry.

    Of the two directions one is a full estimate; or that of the whole model, ``whole_wrong``, sees an error as well.
    """
    deep = [c for line, c in pairs if c.direction.entry is None and line.full]
    quick = [c for line, c in pairs if c.direction.entry is None and not line.full]
    full, first = [c.verdict for c in deep], [c.verdict for c in quick]
    entry = [c.verdict for line, c in pairs if c.direction.entry is not None and line.full]
    kinked = any(line.estimate.status == "kink" for line, _ in pairs)
    # a follow-up does not know a kink: at one it is no witness, neither for nor against; nor where even a full
    # estimate resolves nothing, as among many kinks in float32
    blind = any(c.resolution > _HOPELESS and c.verdict is Verdict.INCONCLUSIVE for c in deep)
    witnesses = full if kinked or blind else full + first
    if whole_wrong and not kinked and len(_proofs(pairs)) > 1:
        return Verdict.DISAGREE
    if Verdict.DISAGREE in entry or (Verdict.DISAGREE in full and witnesses.count(Verdict.DISAGREE) > 1):
        return Verdict.DISAGREE
    latest = {c.direction.entry: c for _, c in pairs if c.direction.entry is not None}
    if latest and size == len(latest) and all(c.verdict is Verdict.AGREE for c in latest.values()):
        # entries clear what a kink in one of them leaves open along a direction
        return Verdict.AGREE
    # one direction in which an error cancels does not clear what another has condemned
    # a look too coarse to tell anything alone need not hold up what the others resolve together; at a kink it may
    clear = [c.verdict is Verdict.AGREE if kinked else c.holds for c in deep or quick]
    if resolved and clear and Verdict.DISAGREE not in witnesses and all(clear):
        return Verdict.AGREE
    return Verdict.INCONCLUSIVE
