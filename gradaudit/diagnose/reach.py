"""Truncations that leave no cliff: which steps of the gradient depend on which inputs, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gradaudit.arrays import eps
from gradaudit.compare import Verdict
from gradaudit.diagnose.evidence import Evidence
from gradaudit.lens.hypotheses import distinct, reaches, truncation
from gradaudit.lens.influence import by_influence
from gradaudit.lens.probe import Probe
from gradaudit.measure.plan import scales
from gradaudit.numeric.budget import Stop
from gradaudit.recurrent import Truncation

__all__ = ["Reach", "reach", "steps_of"]

#: With fewer steps a pattern is too easily met by chance.
_LEAST_STEPS = 8
#: Axes that are looked at, at most: up to three gradients each.
_MOST_AXES = 4
#: Several truncations that fit are named if they are no more than this.
_MOST_NAMED = 4
#: Roundings of a loss in a sum of four of them, in eps.
_ROUNDINGS = 256.0


class Reach(NamedTuple):
    """The tensor, its axis of steps, the truncations that fit; those that keep the same pairs stand as the first."""

    name: str
    axis: int
    n_steps: int
    fit: tuple[Truncation, ...]

    @property
    def is_tail(self) -> bool:
        """Whether no more is seen than that the first steps have no gradient, as frozen rows have none."""
        return all(t.kind == "tail" for t in self.fit)


def reach(evidence: Evidence, wrong: Sequence[str]) -> Reach | None:
    """Which truncation explains a wrong tensor with an axis of time.

    Evaluations are made only where a pattern shows: a right gradient of the last step, and earlier ones that do not
    depend on it although the loss couples them. The last steps must agree with the numbers, and those before not.
    """
    for name, axis in list(_axes(evidence, wrong))[:_MOST_AXES]:
        try:
            found = _along(evidence, name, axis)
        except Stop:
            return None
        except Exception:  # noqa: BLE001, S112  # other inputs may be outside the domain of the loss
            continue
        if found is not None:
            return found
    return None


def steps_of(evidence: Evidence, shape: Sequence[int], least: int) -> Iterator[int]:
    """The axes that can be time: as long as the model says, if it does."""
    steps = evidence.sizes.get("steps")
    return (axis for axis, n in enumerate(shape) if n >= least and steps in (None, n))


def _axes(evidence: Evidence, wrong: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Inputs have more axes than weights as a rule."""
    gradients = evidence.baseline.gradients
    for name in sorted(wrong, key=lambda name: -evidence.model.parameters()[name].ndim):
        g, again = gradients[name], evidence.baseline.again[name]
        if g is not None and again is not None and np.isfinite(g).all() and np.array_equal(g, again):
            yield from ((name, axis) for axis in steps_of(evidence, g.shape, _LEAST_STEPS))


def _along(evidence: Evidence, name: str, axis: int) -> Reach | None:
    assert evidence.total is not None  # something is wrong
    source, options = evidence.total.source, evidence.options
    probe = Probe(
        evidence.model,
        source.model,
        source.digits,
        name,
        axis,
        evidence.budget,
        seed=options.seed,
        batch_bytes=options.batch_bytes,
    )
    n_steps = probe.n_steps
    changed = probe.changed(n_steps)
    if not changed[-1] or changed.all() or not _coupled(probe):
        return None
    found = by_influence(probe)
    if found.status != "truncated" or len(found.rows) > _MOST_NAMED:
        return None
    kept = reaches(found.rows, np.arange(1, n_steps + 1), n_steps) == n_steps
    late = kept.all(axis=0)
    shape = [n_steps if i == axis else 1 for i in range(evidence.model.parameters()[name].ndim)]
    size = scales({name: evidence.model.parameters()[name]})[name]
    looks = evidence.along([{name: size * part.astype(float).reshape(shape)} for part in (~kept.any(axis=0), late)])
    if [look.verdict for look in looks] != [Verdict.DISAGREE, Verdict.AGREE]:
        return None
    fit = tuple(map(truncation, found.rows))
    return Reach(name, axis, n_steps, fit[:1] if distinct(found.rows, n_steps) == 1 else fit)


def _coupled(probe: Probe) -> bool:
    """Whether the loss couples the first half of the steps with the second: a mixed difference that is not zero."""
    half, n_steps = probe.n_steps // 2, probe.n_steps
    probe.budget.take(4, "diagnosing")
    moves = ((0, 0), (1, half), (half + 1, n_steps), (1, n_steps))
    base, early, late, both = (float(probe.numeric.loss(probe.moved(*steps))) for steps in moves)
    mixed = abs(both - early - late + base)
    return mixed > _ROUNDINGS * eps(probe.digits) * max(map(abs, (base, early, late, both)))
