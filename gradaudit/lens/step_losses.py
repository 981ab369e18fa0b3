"""Rule R: what each step's loss owes to each input, against the analytic gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradaudit.arrays import Array
from gradaudit.lens.hypotheses import Rows, candidates, reaches
from gradaudit.lens.slopes import NEARBY, NODES, richardson
from gradaudit.numeric.noise import cluster_residual

__all__ = ["Fits", "by_step_losses", "fitting", "hypotheses", "owed", "unnoticed"]

#: A hypothesis fits within so many errors of the differences; the rest is rounding of the analytic side: of sums of
#: products in float64, and for narrower dtypes in units of their eps.
_ERRORS, _ROUNDING, _ROUNDINGS = 6.0, 1e-8, 100.0
#: Where differences are off by one per cent, a loss bends so much that the error itself is known to half only.
_BENT = 100.0
#: An error beyond this share of the largest derivative says nothing about any hypothesis.
_RESOLVED = 1e-2
#: Beyond this share the inputs are moved less as well: there the error itself may be off by ten times.
_BENDS, _SHORTER = 1e-4, (0.25, 0.0625)
#: A quarter of the move leaves 4^-6 of an error of order six; where losses bend that much, no more is relied on.
_LEFT = 4.0**-3
#: Numbers in one batch of moved inputs.
_MOST_NUMBERS = 2**22
#: Hypotheses whose reaches are compared at once.
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Fits:
    """Which reaches the numbers allow.

    Attributes:
        allowed: (T, T+1), whether the use at step t may be kept for the losses up to e = 0..T, and no others.
        resolved: whether the numbers are exact enough to say that nothing is missing.
        finite: whether they are numbers.
    """

    allowed: NDArray[np.bool_]
    resolved: bool
    finite: bool


def by_step_losses(
    losses: Callable[[Array], Array], inputs: Array, gradient: Array, *, seed: int = 0, eps: float = 2.0**-52
) -> Fits:
    """Compare d loss / d x_t with the sums of d loss_s / d x_t over s = t..e, for all t and e; 6 T + 8 evaluations.

    And 6 or 12 more for each step along which the losses bend strongly.

    Args:
        losses: inputs (K, T, ...) -> step losses (K, T).
        inputs: (T, ...), float64.
        gradient: of their sum, as the framework returns it, (T, ...).
        seed: of the signs along which the inputs are moved.
        eps: of the dtype in which the losses are computed.
    """
    n_steps = len(inputs)
    size = float(np.sqrt(np.mean(np.square(inputs)))) or 1.0
    moves = size * np.random.default_rng([seed, 11]).choice(np.array([-1.0, 1.0]), inputs.shape)
    analytic = (np.asarray(gradient, np.float64) * moves).reshape(n_steps, -1).sum(axis=1)
    return fitting(analytic, *owed(losses, inputs, moves, eps), relative=max(_ROUNDING, _ROUNDINGS * _eps(gradient)))


def _eps(gradient: Array) -> float:
    return float(np.finfo(gradient.dtype).eps)


def owed(losses: Callable[[Array], Array], inputs: Array, moves: Array, eps: float) -> tuple[Array, Array]:
    """The derivative along the move of input t of the losses up to e, and its error: both (T, T+1), e = 0..T.

    Of steps along which a loss bends strongly, those of a shorter move where they are known better.
    """
    every = np.arange(len(inputs))
    noise = _noise(losses, inputs, moves)
    found, errors = _owed(losses, inputs, moves, eps, noise, every)
    for shorter in _SHORTER:
        with np.errstate(invalid="ignore"):
            bends = every[errors.max(axis=1) > _BENDS * np.abs(found).max(axis=1)]
        if not len(bends):
            break
        # the losses, and so their rounding, are the same; the derivative is along a part of the move
        again, less = (x / shorter for x in _owed(losses, inputs, shorter * moves, eps, noise, bends))
        # by chance two extrapolations of a wave meet, and say nothing of its error
        less = np.maximum(less, _LEFT * np.abs(again - found[bends]))
        better = less < errors[bends]
        found[bends] = np.where(better, again, found[bends])
        errors[bends] = np.where(better, less, errors[bends])
    return found, errors


def _owed(
    losses: Callable[[Array], Array], inputs: Array, moves: Array, eps: float, noise: float, which: NDArray[np.int64]
) -> tuple[Array, Array]:
    """The same for some of the inputs, (len(which), T+1), by one move."""
    n_steps = len(inputs)
    found, errors = np.zeros((2, len(which), n_steps + 1))
    at_once = max(1, _MOST_NUMBERS // (len(NODES) * inputs.size))
    for start in range(0, len(which), at_once):
        rows = slice(start, start + at_once)
        steps = which[rows]
        moved = np.repeat(np.repeat(inputs[None, None], len(steps), axis=1), len(NODES), axis=0)
        for i, t in enumerate(steps):
            moved[:, i, t] += np.multiply.outer(NODES, moves[t])
        with np.errstate(all="ignore"):
            values = np.asarray(losses(moved.reshape(-1, *inputs.shape)), np.float64)
            values = values.reshape(len(NODES), len(steps), n_steps)
            # differences at steps before t are zero exactly, or rounding where a batch rounds by its place
            sums = np.cumsum(np.where(np.arange(n_steps) < steps[:, None], 0, values - values[:1]), axis=2)
            rounding = np.maximum(noise, eps * np.abs(values).max(axis=(0, 2)))[:, None]
            found[rows, 1:], errors[rows, 1:] = richardson(sums, rounding)
    return found, errors


def _noise(losses: Callable[[Array], Array], inputs: Array, moves: Array) -> float:
    """The rounding of the noisiest step loss: a cross-entropy can be a small difference of large numbers."""
    with np.errstate(all="ignore"):
        values = np.asarray(losses(inputs + np.multiply.outer(NEARBY, moves)), np.float64)
    return max(cluster_residual(NEARBY, step) for step in values.T)


def fitting(analytic: Array, sums: Array, errors: Array, *, relative: float) -> Fits:
    """Which sums over losses the analytic derivatives (T,) can be; ``sums`` and ``errors`` as `owed` gives them."""
    finite = bool(np.isfinite(analytic).all() and np.isfinite(sums).all() and np.isfinite(errors).all())
    scale = np.abs(sums).max(axis=1, initial=0.0)[:, None]
    share = np.divide(errors, scale, out=np.zeros_like(errors), where=scale > 0)
    tolerance = _ERRORS * (1 + _BENT * share) * errors + relative * scale
    with np.errstate(invalid="ignore"):
        allowed = np.abs(analytic[:, None] - sums) <= tolerance
        resolved = bool(tolerance.max(initial=0.0) <= _RESOLVED * scale.max(initial=0.0))
    return Fits(allowed, resolved, finite)


def hypotheses(fits: Fits) -> Rows:
    """The truncations that fit at every step."""
    n_steps = len(fits.allowed)
    uses = np.arange(1, n_steps + 1)
    wrong = np.flatnonzero(~fits.allowed[:, n_steps])
    if not len(wrong):
        return np.zeros((0, 3), np.int64)
    # the one step that leaves the fewest hypotheses to look at
    chosen = wrong[np.argmin(fits.allowed[wrong].sum(axis=1))]
    ends = np.flatnonzero(fits.allowed[chosen])
    rows = candidates(int(chosen) + 1, [int(e) for e in ends if e > chosen or e == 0], n_steps)
    kept = [
        part[fits.allowed[uses - 1, reaches(part, uses, n_steps)].all(axis=1)]
        for part in (rows[i : i + _AT_ONCE] for i in range(0, len(rows), _AT_ONCE))
    ]
    found = np.concatenate(kept) if kept else rows
    return found[np.lexsort(found.T[[1, 2, 0]])]


def unnoticed(fits: Fits) -> int | None:
    """The smallest k < T for which window(k) would look the same; None if there is none."""
    n_steps = len(fits.allowed)
    uses = np.arange(1, n_steps + 1)
    for k in range(1, n_steps):
        if fits.allowed[uses - 1, np.minimum(uses + k - 1, n_steps)].all():
            return k
    return None
