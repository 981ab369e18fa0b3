"""Truncations as rows of numbers, many at once: what each of them would show.

A row is (kind, k1, k): the kind by its place in `KINDS`, k1 of tbptt (otherwise 0), and k. Steps are numbered 1..T, as
in `gradaudit.recurrent.truncation`, whose `Truncation.reach` defines what is computed here for all rows together.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gradaudit.recurrent import Truncation, chunks, tail, tbptt, window

__all__ = ["KINDS", "Rows", "candidates", "distinct", "first_uses", "of_last_loss", "reaches", "truncation"]

KINDS = ("tail", "window", "chunks", "tbptt")
Rows = NDArray[np.int64]
#: Beyond so many numbers rows are taken to differ.
_MOST_COMPARED = 2**23
_TAIL, _WINDOW, _CHUNKS, _TBPTT = range(4)


def truncation(row: Rows) -> Truncation:
    """One row as the value that users know."""
    kind, k1, k = map(int, row)
    return tbptt(k1, k) if kind == _TBPTT else (tail, window, chunks)[kind](k)


def reaches(rows: Rows, uses: Rows, n_steps: int) -> Rows:
    """e(u), the last loss for which the use u is kept, 0 for none: (rows, uses)."""
    found = np.empty((len(rows), len(uses)), np.int64)
    for kind in range(len(KINDS)):
        k1, k = rows[rows[:, 0] == kind][:, 1:, None].swapaxes(0, 1)
        ends = np.minimum(uses + k - 1, n_steps)
        if kind == _TAIL:
            ends = np.where(uses > n_steps - k, n_steps, 0)
        elif kind == _CHUNKS:
            ends = np.minimum(((uses - 1) // k + 1) * k, n_steps)
        elif kind == _TBPTT:
            ends = np.where(ends == n_steps, n_steps, ends // k1 * k1)
        found[rows[:, 0] == kind] = ends
    return found


def first_uses(rows: Rows, losses: Rows, n_steps: int) -> Rows:
    """The first use u <= s that is kept for the loss s, s + 1 where none is: (rows, losses)."""
    found = np.empty((len(rows), len(losses)), np.int64)
    for kind in range(len(KINDS)):
        k1, k = rows[rows[:, 0] == kind][:, 1:, None].swapaxes(0, 1)
        if kind == _TAIL:
            first = np.where(losses > n_steps - k, n_steps - k + 1, losses + 1)
        elif kind == _WINDOW:
            first = losses - k + 1
        elif kind == _CHUNKS:
            first = (losses - 1) // k * k + 1
        else:
            first = np.minimum(n_steps, -(-losses // k1) * k1) - k + 1
        found[rows[:, 0] == kind] = np.maximum(first, 1)
    return found


def candidates(use: int, ends: Iterable[int], n_steps: int) -> Rows:
    """All truncations that keep the use at this step for the losses up to one of ``ends`` < T, and for no other.

    An end before the use means: for no loss at all. Each truncation is listed once: tbptt(1, k) is window(k), and
    tbptt(k, k) is chunks(k) where k divides T.
    """
    found = []
    if any(end < use for end in ends):
        found += [np.array([[_TAIL, 0, k]]) for k in range(1, n_steps - use + 1)]
    for end in (end for end in ends if end >= use):
        kept = end - use + 1
        found.append(np.array([[_WINDOW, 0, kept]]))
        k1 = np.arange(1, end + 1)
        for divisor in map(int, k1[end % k1 == 0]):
            if divisor >= kept:
                found.append(np.array([[_CHUNKS, 0, divisor]]))
            k = np.arange(max(divisor, kept), min(kept + divisor - 1, n_steps - use) + 1)
            if n_steps % divisor == 0:
                k = k[k != divisor]
            if divisor > 1:
                found.append(np.stack([np.full_like(k, _TBPTT), np.full_like(k, divisor), k], axis=1))
    return np.concatenate(found) if found else np.zeros((0, 3), np.int64)


def of_last_loss(k: int, n_steps: int) -> Rows:
    """All truncations that cover the last k < T steps; with a loss at the last step only they are one and the same."""
    every = np.arange(k, n_steps)
    blocks = every[(n_steps - 1) % every + 1 == k]
    k1 = np.arange(2, k + 1)
    if n_steps % k == 0:
        k1 = k1[k1 != k]
    rows = [(_TAIL, 0, k), (_WINDOW, 0, k), *((_CHUNKS, 0, b) for b in blocks), *((_TBPTT, b, k) for b in k1)]
    return np.array(rows, np.int64)


def distinct(rows: Rows, n_steps: int) -> int:
    """How many different sets of pairs they keep: window(1), for example, is chunks(1)."""
    if len(rows) * n_steps > _MOST_COMPARED:
        return len(rows)
    return len(np.unique(reaches(rows, np.arange(1, n_steps + 1), n_steps), axis=0))
