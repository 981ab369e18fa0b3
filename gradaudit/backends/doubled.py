"""The gradient of a long window without its runs: products of the steps' Jacobians, their number doubled each time.

What the losses s = u..u+k-1 pull at the state after step u is ``mu^k_u``. With ``Q^k_u`` the product of the Jacobians
of the k steps after u, ``mu^(a+b)_u = mu^a_u + mu^b_(u+a) Q^a_u`` and ``Q^(a+b)_u = Q^b_(u+a) Q^a_u``: about log k
times a few operations on all steps at once, where the segments run k steps for every loss. One backward pass through
all steps side by side then makes the gradient of it. For networks of few units: a Jacobian has S x S numbers.
"""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays
from gradaudit.backends.one_step import Build, OneStep
from gradaudit.recurrent import Problem, Truncation

__all__ = ["doubled"]

#: The Jacobians pay off where a window is longer than so many times the numbers in one of them; measured.
_LONG = 1
#: Numbers in all Jacobians.
_MOST_NUMBERS = 2**24


def doubled(
    problem: Problem, truncation: Truncation, build: Build, parameters: NamedArrays, states: Array
) -> Gradients | None:
    """The gradient with ``window(k)``; None: another truncation, too short a window, or products beyond all numbers.

    Args:
        problem: what is truncated; of a bidirectional network one side.
        truncation: cuts something over its steps.
        build: the backend's network for a problem.
        parameters: where.
        states: (T+1, N, S), h_0..h_T there.
    """
    n_steps, n_sequences, n_state = states[1:].shape
    k = truncation.k or 0
    if truncation.kind != "window" or k <= _LONG * n_state**2 or n_steps * n_sequences * n_state**2 > _MOST_NUMBERS:
        return None
    one, steps = OneStep(problem, build, parameters), np.arange(n_steps)
    gradients, pulls = one.losses(steps, states[1:])
    with np.errstate(all="ignore"):
        total = _window(pulls, _jacobians(one, states), k)
    if not np.isfinite(total).all():
        return None
    others, before = one.back(steps, states[:-1], total.astype(states.dtype))
    summed = {name: np.asarray(gradients[name]) + np.asarray(others[name]) for name in gradients}
    if names := problem.spec.initial_states(reverse=problem.side == "reverse"):
        own = np.where(problem.start_state().live[:, None], before[0], 0).sum(axis=0)
        summed |= dict(zip(names, np.split(own, len(names)), strict=True))
    return summed


def _jacobians(one: OneStep, states: Array) -> Array:
    """Of every step, the state after it by that before, (S, S, T, N), in float64."""
    n_steps, n_sequences, n_state = states[1:].shape
    pulls = np.zeros((n_state, n_steps, n_sequences, n_state), states.dtype)
    for i in range(n_state):
        pulls[i, ..., i] = 1
    before = np.concatenate([states[:-1]] * n_state)
    _, rows = one.back(np.tile(np.arange(n_steps), n_state), before, pulls.reshape(before.shape))
    return np.ascontiguousarray(rows.reshape(pulls.shape).transpose(0, 3, 1, 2), np.float64)


def _window(pulls: Array, jacobians: Array, k: int) -> Array:
    """What the losses u..u+k-1 pull at the states after the steps u, from what each pulls at its own: (T, N, S)."""
    own = np.ascontiguousarray(pulls.transpose(2, 0, 1), np.float64)
    following = _later(jacobians, 1)
    # of n losses, and of the n steps after each
    n, total, product, bits = 1, own, following, bin(k)[3:]
    for i, bit in enumerate(bits):
        total = total + _times(_later(total, n), product)
        if bit == "1":
            total = own + _times(_later(total, 1), following)
        if i + 1 < len(bits):
            product = np.stack([_times(row, product) for row in _later(product, n)])
            n *= 2
            if bit == "1":
                product = np.stack([_times(row, following) for row in _later(product, 1)])
                n += 1
    return total.transpose(1, 2, 0)


def _later(array: Array, n: int) -> Array:
    """(..., T, N) as it is n steps later, 0 behind the last."""
    shifted = np.zeros_like(array)
    shifted[..., :-n, :] = array[..., n:, :]
    return shifted


def _times(row: Array, matrix: Array) -> Array:
    """Rows (S, T, N) times matrices (S, S, T, N): along time, where the long axes are."""
    found = np.asarray(row[0] * matrix[0])
    for i in range(1, len(row)):
        found += row[i] * matrix[i]
    return found
