"""How far losses reach back, as text: a row for each distance, then a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gradaudit.render.to_text import number, table

if TYPE_CHECKING:
    from gradaudit.arrays import Array
    from gradaudit.lens.by_pair import PairView

__all__ = ["pair_text", "picture"]

#: Losses and states in a picture; of more, every so manyth is drawn.
_MOST_DRAWN = 40
_WIDTH = 100
_DIGITS = 9
_LEGEND = "0 to 9: passed back, so many powers of ten below the largest, . cut, ! wrong, ? not resolved"


def pair_text(view: PairView) -> str:
    """All of it; at most 100 columns."""
    cuts = view.truncation.cuts(view.n_steps)
    given = f" given {view.truncation}" if cuts else ""
    n, more = len(view.steps), "" if len(view.steps) == view.n_steps else f" of {view.n_steps:,}"
    head = (
        f"{view.verdict}{given}   {view.target}: d loss_s / d h_u, {n:,}{more} steps, {view.evaluations:,} evaluations"
    )
    return "\n".join([*textwrap.wrap(head, _WIDTH), "", *_distances(view), "", *_legend(view), picture(view)])


def _distances(view: PairView) -> list[str]:
    """A row for the pairs of one distance, or of a doubling of it."""
    ages = view.steps[:, None] - view.steps
    rows = [["s - u", "pairs", "kept", "|analytic|", "|numeric|", "wrong", "not resolved"]]
    for low, high in _doublings(int(ages.max())):
        here = (ages >= low) & (ages <= high)
        if not here.any():
            continue
        counts = [int(part[here].sum()) for part in (view.kept, view.wrong, view.unresolved)]
        kept, wrong, lost = (f"{count:,}" for count in counts)
        sizes = [number(_rms(part[here])) for part in (view.analytic, view.numeric)]
        span = f"{low}" if low == high else f"{low}..{high}"
        rows.append([span, f"{here.sum():,}", kept, *sizes, wrong, lost])
    return table(rows, right=(1, 2, 3, 4, 5, 6))


def _doublings(most: int) -> Iterator[tuple[int, int]]:
    yield 0, 0
    low = 1
    while low <= most:
        yield low, min(2 * low - 1, most)
        low *= 2


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _stride(view: PairView) -> int:
    return -(-len(view.steps) // _MOST_DRAWN)


def _legend(view: PairView) -> list[str]:
    every = "" if (stride := _stride(view)) == 1 else f", one of {stride}"
    return [f"  Losses s (rows) by states u (columns){every}.", f"  {_LEGEND}."]


def picture(view: PairView) -> str:
    """A sign for each pair, a row for each loss."""
    sizes, stride = np.abs(view.analytic), _stride(view)
    nothing, largest = sizes == 0, sizes[np.isfinite(sizes)].max(initial=0.0) or 1.0
    # kept, and weighed with 0 by chance
    dropped = (view.expected == 0) & (view.numeric != 0)
    with np.errstate(all="ignore"):
        powers = np.nan_to_num(-np.log10(sizes / largest), nan=_DIGITS, posinf=_DIGITS, neginf=0)
    digits = np.clip(powers, 0, _DIGITS).astype(int).astype(str)
    signs = np.select(
        [view.wrong, nothing & (dropped | ~view.kept), nothing, view.unresolved], ["!", ".", " ", "?"], digits
    )
    drawn = np.arange(len(signs))[(len(signs) - 1) % stride :: stride]
    return "\n".join(f"  {view.steps[i]:>6}  {''.join(signs[i, drawn[drawn <= i]])}" for i in drawn)
