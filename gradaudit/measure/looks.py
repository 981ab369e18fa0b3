"""What is worth another look, and along which directions: what is doubtful, hidden, or may have cancelled."""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import Array, Gradients
from gradaudit.compare import Verdict, detectable, excluded
from gradaudit.measure import plan
from gradaudit.measure.judgement import Measurement
from gradaudit.measure.plan import Probe
from gradaudit.options import AuditOptions

__all__ = ["blind", "doubtful", "hidden", "told"]

#: More directions of one tensor than this do not help: then the bounds are too coarse.
_MOST_MORE = 24
#: More gaps may turn out larger than those before them.
_HOPE = 1.5


def told(seen: Measurement) -> set[str]:
    """The tensors of which looks in longer steps tell something."""
    pairs = [(line.probe.tensor, c) for line, c in zip(seen.lines, seen.comparisons, strict=True)]
    clear = [(n, c) for n, c in pairs if c.verdict is not Verdict.INCONCLUSIVE and not c.unmoved]
    return {name for name, _ in clear if name is not None}


def doubtful(measured: Measurement, lengths: dict[str, float | Array], options: AuditOptions) -> list[Probe]:
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
        if measured.verdicts[name] is Verdict.DISAGREE and any(c.verdict is Verdict.DISAGREE for c in looks):
            continue
        if looks:
            again = [c for c in looks if c.verdict is Verdict.INCONCLUSIVE and id(c.direction) not in full]
            probes += [Probe(c.direction, name) for c in again]
            probes += plan.fresh(lengths, [name], options.seed)
        elif wrong:
            probes.append(Probe(max(wrong, key=lambda c: c.relative_error).direction, name))
    return probes


def hidden(measured: Measurement, lengths: dict[str, float | Array], options: AuditOptions) -> list[Probe]:
    """A fresh direction of each tensor that only its twin's gradient condemns: float32 rounding covers the gap."""
    if measured.beside is None:
        return []
    condemned = [n for n in measured.verdicts if any(c.verdict is Verdict.DISAGREE for c in measured.beside.of(n))]
    clean = [n for n in condemned if all(c.verdict is Verdict.AGREE for c in measured.of(n))]
    return plan.fresh(lengths, clean, options.seed)


def blind(
    measured: Measurement, gradients: Gradients, lengths: dict[str, float | Array], options: AuditOptions, turn: int
) -> list[Probe]:
    """More directions of tensors that agree, but where an error that matters could have cancelled in all of them."""
    probes: list[Probe] = []
    for name in measured.verdicts:
        looks = measured.of(name)
        seen = [c.resolution for c in looks if c.direction.signs is None]
        if any(c.verdict is Verdict.DISAGREE for c in looks) or not seen or not measured.needs(name):
            continue
        gaps = measured.gaps(name, gradients[name])
        more = next((n for n in range(1, _MOST_MORE) if measured.would_do(_expected(seen, gaps, n))), 0)
        probes += plan.more(lengths, name, options.seed, more, turn * _MOST_MORE)
    return probes


def _expected(resolutions: list[float], gaps: list[float], more: int) -> float:
    """The resolution of a tensor after more directions like those before."""
    by_bounds = detectable(resolutions + [float(np.median(resolutions))] * more)
    if not gaps:
        return by_bounds
    usual = float(np.sqrt(np.mean(np.square(gaps))))
    return min(by_bounds, _HOPE * excluded([usual] * (len(gaps) + more)))
