"""Rule I: which inputs, replaced, change which steps of the analytic gradient, to the last bit.

With the inputs of the steps s..T replaced by others, the gradient of the step t < s changes if and only if the use at t
is kept for one of the losses s..T: s <= e(t), or, where not every step has a loss, the first one from s on. No
differences are taken, so the pattern has no noise. What does not change is a cut only where the numeric derivative does
change; otherwise the gradient has vanished.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

import numpy as np

from gradaudit.lens.hypotheses import Rows, candidates, distinct, first_uses, of_last_loss
from gradaudit.lens.probe import Probe

__all__ = ["Found", "by_influence", "last_wrong"]

#: A gap is an error beyond so many errors of the differences, and the rounding of the analytic side.
_ERRORS, _ROUNDING, _ROUNDINGS = 6.0, 1e-8, 100.0
#: A gap as large as that can be told from rounding by what the gradient depends on, where a smaller one cannot.
_PLAIN = 1e-6
#: What is missing would have changed a bit of the gradient: it is so many eps of it.
_SURELY_SEEN = 1e3
#: What is missing matters from 1e-6 of the whole gradient on; the differences of a part should see less.
_MATTERS = 3e-7
#: An error of the differences beyond this share of the gradient says nothing.
_RESOLVED = 1e-2
#: Steps that are replaced at most, from each on, beyond the search for one reach; and at least, as a test.
_MOST_ROWS, _FEWEST_ROWS = 16, 3
#: Predictions compared at once when the next step is chosen.
_MOST_PREDICTIONS = 2**20


class Found(NamedTuple):
    """What the influence shows.

    Attributes:
        status: what the gradient is: ``truncated``, ``complete``, of ``no truncation`` known here, or ``unclear``.
        rows: the truncations that fit.
        covered: how many last steps are right, as far as known.
        why: of what is unclear, in words.
    """

    status: Literal["truncated", "complete", "none", "unclear"]
    rows: Rows
    covered: int
    why: str = ""


class _Row(NamedTuple):
    """The first step whose gradient changes when the steps s..T are replaced; whether there is a cut before it."""

    first: int
    exact: bool


_NO_ROWS = np.zeros((0, 3), np.int64)
_BENT = "the loss bends too strongly for numeric derivatives"
_NOT_AT_THE_END = "with a loss at the last step only, what is cut has no gradient at all"


def by_influence(probe: Probe, losses: Rows | None = None) -> Found:
    """Which truncation a gradient by time is of; see `gradaudit.identify_truncation`.

    Args:
        probe: of the gradient.
        losses: the steps that have a loss, from 1 to T, ascending; None: all.

    Raises:
        Stop: the budget is spent.
    """
    if not probe.repeats:
        return Found("unclear", _NO_ROWS, 0, "two calls do not give the same gradient, to the last bit")
    wrong, resolved = last_wrong(probe)
    seen = _Influence(probe, np.arange(1, probe.n_steps + 1) if losses is None else losses)
    if wrong is None and not resolved:
        # nothing decays in a chaotic network: what the last step influences is all there is to see
        row = seen.row(probe.n_steps)
        wrong = row.first - 1 if row.exact and row.first > 1 else None
    if wrong is None:
        n_steps = probe.n_steps
        if resolved:
            return Found("complete", _NO_ROWS, n_steps)
        return Found("unclear", _NO_ROWS, 0, "the loss bends too strongly, or is too coarse, for numeric derivatives")
    covered = probe.n_steps - wrong
    if not covered:
        return Found("none", _NO_ROWS, 0, "the gradient of the last step is wrong, which no truncation changes")
    found = seen.identify(wrong)
    if found.status == "unclear" and (plain := last_wrong(probe, _PLAIN)[0]) not in (None, wrong):
        return seen.identify(plain)
    return found


def last_wrong(probe: Probe, least: float = _ROUNDING) -> tuple[int | None, bool]:
    """The last step whose gradient is not the derivative of the loss, and whether the numbers could say.

    Blocks of 1, 2, 4, ... steps from the end are moved together, each along random signs; the first that is wrong is
    halved: log2 T + 1 blocks if none is wrong, at most twice as many. Six losses each, up to eighteen where the loss
    bends too strongly for the usual displacement; and eight for the noise.
    """
    end, size, resolved = probe.n_steps, 1, True
    while end > 0:
        start = max(0, end - size)
        verdict = _wrong(probe, start, end, least)
        resolved = resolved and verdict is not None
        if verdict:
            while end - start > 1:
                middle = (start + end) // 2
                start, end = (middle, end) if _wrong(probe, middle, end, least) else (start, middle)
            return end, resolved
        end, size = start, 2 * size
    return None, resolved


def _wrong(probe: Probe, start: int, end: int, least: float = _ROUNDING) -> bool | None:
    """Whether the gradient of the steps start + 1 to end is wrong by more than ``least``; None: that cannot be said."""
    analytic, norm = probe.analytic(start + 1, end)
    whole = float(np.linalg.norm(probe.gradient().astype(np.float64))) * probe.size
    numeric = probe.slope(start + 1, end, within=_MATTERS * whole / _ERRORS)
    gap, error = abs(analytic - numeric.value), _ERRORS * numeric.error
    if not np.isfinite(gap + error):
        return None
    if gap > error + max(least, _ROUNDINGS * probe.eps) * norm:
        return True
    scale = max(float(np.abs(probe.gradient()).max()) * probe.size, norm)
    return False if error <= _RESOLVED * scale else None


@final
@dataclass(eq=False)
class _Influence:
    probe: Probe
    losses: Rows
    rows: dict[int, _Row] = field(default_factory=dict)

    def row(self, step: int) -> _Row:
        """What happens when the inputs of the steps s..T are replaced."""
        if step not in self.rows:
            changed = self.probe.changed(step)
            first = int(np.argmax(changed)) + 1 if changed.any() else step + 1
            self.rows[step] = _Row(first, first == 1 or self.is_cut(first - 1, step))
        return self.rows[step]

    def is_cut(self, use: int, step: int) -> bool:
        """Whether the derivative at the step u does change with the inputs s..T, so much that its gradient should."""
        before, after = self.probe.slope(use, use), self.probe.slope(use, use, step)
        _, norm = self.probe.analytic(use, use)
        least = _ERRORS * (before.error + after.error) + _SURELY_SEEN * self.probe.eps * norm
        return bool(abs(before.value - after.value) > least)

    def identify(self, wrong: int) -> Found:
        """The truncations that fit, the gradient of the step ``wrong`` being wrong and of those after it right."""
        n_steps = self.probe.n_steps
        alive = np.any(self.probe.gradient() != 0, axis=1)
        if not alive.any():
            return Found("none", _NO_ROWS, 0, "the gradient is zero at all steps")
        if self.losses.tolist() == [n_steps]:
            return self._of_last_loss(wrong)
        end = self._end(wrong) if alive[wrong - 1] else 0
        # a use that is kept for no loss is behind a tail, or before the first loss that it could be kept for
        if end is None or (end == 0 and alive[:wrong].any() and self._next(wrong) == wrong):
            if not self.is_wrong(wrong):
                return Found("unclear", _NO_ROWS, 0, _BENT)
            return Found("none", _NO_ROWS, 0, "what is missing is not an interval of losses")
        if end and not self.is_cut(wrong, end + 1):
            return Found("unclear", _NO_ROWS, n_steps - wrong, "what is missing is too small to tell from rounding")
        return self._narrow(self._fit(candidates(wrong, self._ends(wrong, end), n_steps)))

    def is_wrong(self, use: int) -> bool:
        """Whether one step alone is wrong, as the search concluded from blocks: in a chaotic net it need not be."""
        return bool(_wrong(self.probe, use - 1, use))

    def _of_last_loss(self, wrong: int) -> Found:
        n_steps, row = self.probe.n_steps, self.row(self.probe.n_steps)
        alive = np.any(self.probe.gradient() != 0, axis=1)
        if not row.exact:
            return Found("unclear", _NO_ROWS, n_steps - wrong, "what is missing is too small to tell from rounding")
        if row.first <= wrong:
            # what the search concluded from blocks, at the step itself
            if not self.is_wrong(wrong):
                return Found("unclear", _NO_ROWS, 0, _BENT)
            return Found("none", _NO_ROWS, 0, _NOT_AT_THE_END)
        # ``wrong`` can lie further back than the cut: next to it the gradient may be too small to be seen missing
        if alive[: row.first - 1].any():
            return Found("none", _NO_ROWS, 0, _NOT_AT_THE_END)
        covered = n_steps - row.first + 1
        return Found("truncated", of_last_loss(covered, n_steps), covered)

    def _end(self, use: int) -> int | None:
        """The last loss for which the use is kept, as far as can be seen: by doubling, then halving; None: T."""
        kept, cut, step = use, self.probe.n_steps + 1, 1
        while cut - kept > 1:
            at = min(kept + step, cut - 1)
            if self.probe.changed(at)[use - 1]:
                kept, step = at, 2 * step
            else:
                cut, step = at, max(1, (at - kept) // 2)
        return None if kept == self.probe.n_steps else kept

    def _ends(self, use: int, kept: int) -> list[int]:
        """What e(u) can be, if the use is kept for the losses up to this one; 0: for none."""
        following = int(self._next(max(kept + 1, use)))
        return [kept, *range(kept + 1 if kept else use, following)]

    def _next(self, steps: Rows | int) -> Rows:
        """The first steps from these on that have a loss; T + 1 behind the last."""
        return np.append(self.losses, self.probe.n_steps + 1)[np.searchsorted(self.losses, steps)]

    def _predicted(self, rows: Rows, steps: Rows) -> Rows:
        """The first uses that change when what is from these steps on is replaced."""
        return first_uses(rows, self._next(steps), self.probe.n_steps)

    def _fit(self, rows: Rows) -> Rows:
        steps = np.array(sorted(self.rows), np.int64)
        if not len(steps) or not len(rows):
            return rows
        predicted = np.minimum(self._predicted(rows, steps), steps + 1)
        seen = np.array([self.rows[int(s)].first for s in steps])
        exact = np.array([self.rows[int(s)].exact for s in steps])
        fits = (predicted == seen) | (~exact & (predicted < seen))
        return np.asarray(rows[fits.all(axis=1)])

    def _narrow(self, rows: Rows) -> Found:
        """Replace from the step on that tells most of what is left apart, until it is one, or nothing tells."""
        n_steps = self.probe.n_steps
        tests = [n_steps, *np.random.default_rng([self.probe.seed, 41]).permutation(np.arange(2, n_steps)).tolist()]
        while len(rows) and len(self.rows) < _MOST_ROWS:
            step = self._telling(rows) if distinct(rows, n_steps) > 1 and n_steps in self.rows else None
            if step is None:
                if len(self.rows) >= _FEWEST_ROWS:
                    break
                step = next((t for t in tests if t not in self.rows), None)
            if step is None:
                break
            self.row(step)
            rows = self._fit(rows)
        if not len(rows):
            return Found("none", rows, 0, "no truncation known here cuts as this gradient is cut")
        return Found("truncated", rows, int(rows[0, 2]) if len(rows) == 1 else 0)

    def _telling(self, rows: Rows) -> int | None:
        """The step not yet asked at which the most predictions differ."""
        n_steps = self.probe.n_steps
        steps = np.array([s for s in range(2, n_steps + 1) if s not in self.rows])
        most = max(1, _MOST_PREDICTIONS // len(rows))
        if len(steps) > most:
            steps = np.random.default_rng([self.probe.seed, 43]).choice(steps, most, replace=False)
        if not len(steps):
            return None
        predicted = np.sort(self._predicted(rows, steps), axis=0)
        kinds = 1 + np.count_nonzero(np.diff(predicted, axis=0), axis=0)
        return int(steps[np.argmax(kinds)]) if kinds.max() > 1 else None
