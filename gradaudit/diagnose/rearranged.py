"""Causes of order: the right numbers in the wrong places. Each is tried: rearranged back, does the gradient agree?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import numpy as np

from gradaudit.arrays import Array
from gradaudit.compare import Comparison
from gradaudit.diagnose.evidence import Evidence
from gradaudit.report import Finding

__all__ = ["permuted", "shifted", "summed", "swapped", "transposed"]

#: One number fits by chance; two along different directions do not. A look as coarse as this fits anything.
_LEAST_LOOKS, _COARSE = 2, 0.02
#: Equal blocks of rows or columns that may be in another order: the gates of an LSTM, of a GRU, two halves.
_BLOCKS = (4, 3, 2)
#: Relative differences that rounding of a rearranged float32 gradient may leave.
_TOLERANCE = 3e-4


def transposed(evidence: Evidence) -> Finding | None:
    """GA401: a square matrix is transposed."""

    def candidates(g: Array) -> Iterator[tuple[Array, str]]:
        if g.ndim == 2 and g.shape[0] == g.shape[1]:
            yield g.T, "transposed"

    remedy = "Look for a product with its factors exchanged (x.T @ d against d.T @ x), or a weight stored transposed."
    return _finding(evidence, "GA401", "transposed", candidates, remedy)


def swapped(evidence: Evidence) -> Finding | None:
    """GA402: two parameters of the same shape have each other's gradient."""
    gradients = evidence.baseline.gradients
    names = [name for name in evidence.wrong() if gradients[name] is not None]
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            mine, theirs = gradients[one], gradients[other]
            if mine is None or theirs is None or mine.shape != theirs.shape:
                continue
            if _fits(evidence, one, theirs) and _fits(evidence, other, mine):
                return Finding(
                    code="GA402",
                    title="gradients of two parameters swapped",
                    confidence="proven",
                    sentence=f"{one} has the gradient of {other}, and {other} that of {one}.",
                    evidence=f"Swapped back, they agree with the numeric derivative in all "
                    f"{len(_looks(evidence, one))} and {len(_looks(evidence, other))} looks.",
                    remedy="Look at the order in which a hand-written backward returns its gradients, or in which they "
                    "are assigned.",
                    parameters=(one, other),
                )
    return None


def permuted(evidence: Evidence) -> Finding | None:
    """GA403: equal blocks of rows or columns are in another order: gates."""

    def candidates(g: Array) -> Iterator[tuple[Array, str]]:
        for axis in range(min(g.ndim, 2)):
            for n in _BLOCKS:
                if g.shape[axis] % n or g.shape[axis] < 2 * n:
                    continue
                blocks = np.split(g, n, axis=axis)
                for order in list(permutations(range(n)))[1:]:
                    text = f"read with the {n} equal blocks of axis {axis} in the order {', '.join(map(str, order))}"
                    yield np.concatenate([blocks[k] for k in order], axis=axis), text

    remedy = "Look at the order of gates or heads: the split in the forward pass, the concatenation in the backward."
    return _finding(evidence, "GA403", "blocks in another order", candidates, remedy)


def shifted(evidence: Evidence) -> Finding | None:
    """GA404: shifted by one along an axis, or reversed."""

    def candidates(g: Array) -> Iterator[tuple[Array, str]]:
        for axis in range(g.ndim):
            if g.shape[axis] > 1:
                yield np.flip(g, axis), f"reversed along axis {axis}"
                yield np.roll(g, 1, axis), f"shifted by +1 along axis {axis}"
                yield np.roll(g, -1, axis), f"shifted by -1 along axis {axis}"

    remedy = "Look for an index off by one (x[t] against x[t-1]), a roll, or a loop that runs backwards."
    return _finding(evidence, "GA404", "shifted or reversed", candidates, remedy)


def summed(evidence: Evidence) -> Finding | None:
    """GA407: along an axis every entry is the sum, or the mean, of what the entries there should be.

    Seen where a small tensor was read entry by entry, since only then the sum of its derivatives is known.
    """
    found = {name: text for name in evidence.wrong() if (text := _summed(evidence, name)) is not None}
    if not found:
        return None
    return Finding(
        code="GA407",
        title="summed over an axis",
        confidence="consistent",
        sentence=" ".join(f"The gradient of {name} is {text} of the derivative." for name, text in found.items()),
        evidence="Entry by entry, of the numeric derivatives.",
        remedy="Look for a keepdims, a broadcast of (N,) against (N, 1), or a sum over one axis too many in the "
        "backward pass.",
        parameters=tuple(found),
    )


def _summed(evidence: Evidence, name: str) -> str | None:
    g = evidence.baseline.gradients[name]
    read = {c.direction.entry: c for c in evidence.lines([name]) if c.direction.entry is not None}
    if g is None or g.size < _LEAST_LOOKS or len(read) < g.size:
        return None
    looks = [read[index] for index in np.ndindex(g.shape)]
    numeric, bound = (
        np.array([value / c.direction.length for value, c in pairs]).reshape(g.shape)
        for pairs in ([(c.numeric, c) for c in looks], [(c.bound, c) for c in looks])
    )
    for axis, n in enumerate(g.shape):
        for what, share in (("the sum", 1.0), ("the mean", 1.0 / n)):
            expected = share * numeric.sum(axis=axis, keepdims=True)
            allowed = share * bound.sum(axis=axis, keepdims=True) + _TOLERANCE * np.abs(expected)
            if (
                n > 1
                and np.all(np.abs(g - expected) <= allowed)
                and np.all(allowed <= _COARSE * np.linalg.norm(numeric))
            ):
                return f"{what} over axis {axis}" if g.ndim > 1 else f"{what}"
    return None


def _finding(
    evidence: Evidence, code: str, title: str, candidates: Callable[[Array], Iterator[tuple[Array, str]]], remedy: str
) -> Finding | None:
    found: dict[str, str] = {}
    for name in evidence.wrong():
        g = evidence.baseline.gradients[name]
        if g is None or not np.isfinite(g).all():
            continue
        text = next((text for candidate, text in candidates(g) if _fits(evidence, name, candidate)), None)
        if text is not None:
            found[name] = text
    if not found:
        return None
    looks = ", ".join(str(len(_looks(evidence, name))) for name in found)
    return Finding(
        code=code,
        title=title,
        confidence="proven",
        sentence=" ".join(f"The gradient of {name} is the derivative when {text}." for name, text in found.items()),
        evidence=f"Rearranged so, it agrees with the numeric derivative in all {looks} looks.",
        remedy=remedy,
        parameters=tuple(found),
    )


def _fits(evidence: Evidence, name: str, candidate: Array) -> bool:
    """Whether a gradient agrees with the numbers of its tensor, in every direction and entry that tell anything."""
    looks = _looks(evidence, name)
    return len(looks) >= _LEAST_LOOKS and all(
        abs(c.direction.dot({name: candidate}) - c.numeric) <= c.bound + _TOLERANCE * c.scale for c in looks
    )


def _looks(evidence: Evidence, name: str) -> list[Comparison]:
    return [c for c in evidence.lines([name]) if c.bound <= _COARSE * c.scale]
