"""The fewest changes that explain a gap: one after another is tried, and the best is kept while others are added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from gradaudit.compare import Comparison, Verdict
from gradaudit.diagnose.evidence import Evidence, Tried
from gradaudit.measure.judgement import Measurement

__all__ = ["agree", "fewest"]

#: More groups than this are not tried one by one; of those that share the gap, so many are named.
_MOST_TRIED, _MOST_SHARED = 12, 3
#: A change that closes less of the gap has no part in it.
_PART = 1e-3

_T = TypeVar("_T")


def fewest(
    evidence: Evidence,
    wrong: Sequence[str],
    groups: Sequence[list[_T]],
    attempt: Callable[[Sequence[_T]], Tried | None],
) -> tuple[list[_T], Tried, Sequence[str]] | None:
    """The changes with which all that is wrong agrees, the gradient that they make, and the tensors.

    If nothing explains all, one group that explains some tensors: the others have causes of their own.

    Args:
        evidence: of the audit.
        wrong: tensors.
        groups: what is changed together, for example the cuts of one line.
        attempt: the experiment; None: it cannot be made.
    """
    chosen: list[_T] = []
    partly: tuple[list[_T], Tried, list[str]] | None = None
    n_chosen, left = 0, list(groups[:_MOST_TRIED])
    gap = _gap(wrong, evidence.total)
    while left and n_chosen < _MOST_SHARED:
        tried = [(group, found) for group in left if (found := attempt([*chosen, *group])) is not None]
        for group, found in tried:
            names = [name for name in wrong if agree(found.measured, [name])]
            if len(names) == len(wrong):
                return [*chosen, *group], found, wrong
            if names and (partly is None or len(names) > len(partly[2])):
                partly = [*chosen, *group], found, names
        gaps = [_gap(wrong, found.measured) for _, found in tried]
        if not gaps or min(gaps) > (1 - _PART) * gap:
            return _together(wrong, chosen, left, attempt) or partly
        best, gap = tried[int(np.argmin(gaps))][0], min(gaps)
        chosen += best
        n_chosen += 1
        left = [group for group in left if group is not best]
    return partly


def _together(
    wrong: Sequence[str],
    chosen: Sequence[_T],
    left: Sequence[list[_T]],
    attempt: Callable[[Sequence[_T]], Tried | None],
) -> tuple[list[_T], Tried, Sequence[str]] | None:
    """The last resort: all at once, where one alone does not come nearer along the few directions that were looked at.

    With two left both are needed, since neither alone was enough; of three, one that is not needed is left out.
    """
    if not 1 < len(left) <= _MOST_SHARED:
        return None
    apart = [[g for g in left if g is not group] for group in left] if len(left) > 2 else []
    for groups in (*apart, left):
        everything = [*chosen, *(change for group in groups for change in group)]
        found = attempt(everything)
        if found is not None and agree(found.measured, wrong):
            return everything, found, wrong
    return None


def agree(measured: Measurement, names: Sequence[str]) -> bool:
    """Whether every number of these tensors is accounted for, and each tensor has one that tells something.

    Less than the verdict AGREE: the same looks that condemned the gradient must clear it, and no further ones.
    """
    looks = {name: _looks(measured, name) for name in names}
    return all(all(c.holds for c in own) and any(c.verdict is Verdict.AGREE for c in own) for own in looks.values())


def _looks(measured: Measurement, name: str) -> list[Comparison]:
    """What speaks for or against a tensor.

    The last look at each entry, since a full estimate comes after the first look. Along directions all of them; but
    beside a kink only full estimates, which know it.
    """
    pairs = list(zip(measured.lines, measured.comparisons, strict=True))
    kinked = any(line.estimate.status == "kink" for line in measured.lines)
    own = [(line, c) for line, c in pairs if line.probe.tensor == name]
    entries = {c.direction.entry: c for _, c in own if c.direction.entry is not None}
    along = [c for line, c in own if c.direction.entry is None and (line.full or not kinked)]
    return [*along, *entries.values()]


def _gap(names: Sequence[str], measured: Measurement | None) -> float:
    """Root mean square of analytic minus numeric over the directions and entries of some tensors."""
    looks = [] if measured is None else [c for name in names for c in _looks(measured, name)]
    squares = [(c.analytic - c.numeric) ** 2 for c in looks if np.isfinite(c.numeric) and np.isfinite(c.analytic)]
    return float(np.sqrt(np.mean(squares))) if squares else float("inf")
