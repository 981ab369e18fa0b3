"""The fewest changes that explain a gap: one after another is tried, and the best is kept while others are added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from gradaudit.compare import Verdict
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
) -> tuple[list[_T], Tried] | None:
    """The changes with which all that is wrong agrees, and the gradient that they make.

    Args:
        evidence: of the audit.
        wrong: tensors.
        groups: what is changed together, for example the cuts of one line.
        attempt: the experiment; None: it cannot be made.
    """
    chosen: list[_T] = []
    n_chosen, left = 0, list(groups[:_MOST_TRIED])
    gap = _gap(wrong, evidence.total)
    while left and n_chosen < _MOST_SHARED:
        tried = [(group, found) for group in left if (found := attempt([*chosen, *group])) is not None]
        for group, found in tried:
            if agree(found.measured, wrong):
                return [*chosen, *group], found
        gaps = [_gap(wrong, found.measured) for _, found in tried]
        if not gaps or min(gaps) > (1 - _PART) * gap:
            return None
        best, gap = tried[int(np.argmin(gaps))][0], min(gaps)
        chosen += best
        n_chosen += 1
        left = [group for group in left if group is not best]
    return None


def agree(measured: Measurement, names: Sequence[str]) -> bool:
    """Whether every number of these tensors is accounted for, and each tensor has one that tells something.

    Less than the verdict AGREE: the same looks that condemned the gradient must clear it, and no further ones.
    """
    looks = {name: [*measured.of(name), *measured.of(name, entries=True)] for name in names}
    return all(all(c.holds for c in own) and any(c.verdict is Verdict.AGREE for c in own) for own in looks.values())


def _gap(names: Sequence[str], measured: Measurement | None) -> float:
    """Root mean square of analytic minus numeric over the directions and entries of some tensors."""
    looks = [] if measured is None else [c for n in names for e in (False, True) for c in measured.of(n, entries=e)]
    squares = [(c.analytic - c.numeric) ** 2 for c in looks if np.isfinite(c.numeric) and np.isfinite(c.analytic)]
    return float(np.sqrt(np.mean(squares))) if squares else float("inf")
