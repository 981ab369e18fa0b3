"""At which steps a loss is evaluated along a line. The constants are of method, found by measurement.

Steps are no powers of two: dyadic steps make argument rounding exact or regular, which hides the noise.
"""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import Array

__all__ = ["Ladder", "above", "below", "between", "cluster", "first", "follow_up"]

#: Six symmetric levels cover truncation error of any size within one batch.
_LEVELS = 6
#: A level below this many resolutions would mostly measure rounded arguments.
_LEAST_RESOLUTIONS = 12
#: Cluster nodes spread over many resolutions, so that each argument is rounded differently.
_CLUSTER_RESOLUTIONS = 48
_CLUSTER = np.array([0.817, 1.934, 2.771, 3.913])
#: float64 has room for a wide ladder; in float32 the useful steps span three decades only.
_DOUBLE_EPS = 1e-12


class Ladder:
    """The constants of a ladder for one loss precision.

    Attributes:
        top: the longest step, relative to the scale of the parameters.
        ratio: between neighbouring levels.
        cluster: the unit of the noise cluster.
        lowest: the shortest step ever used.
        follow_up: multiples of the longest step of a window that served another direction; four levels cannot bear the
            order that the window's many levels bore, so they are shorter.
    """

    __slots__ = ("cluster", "follow_up", "lowest", "ratio", "top")

    def __init__(self, eps: float) -> None:
        double = eps < _DOUBLE_EPS
        self.top, self.ratio = (0.237, 15.37) if double else (0.472, 3.83)
        self.cluster, self.lowest = (1.137 * 2.0**-34, 2.0**-44) if double else (1.137 * 2.0**-18, 2.0**-19)
        self.follow_up = np.array([0.25, 0.05, 0.01, 0.002] if double else [0.26, 0.09, 0.03, 0.01])


def _symmetric(steps: Array) -> Array:
    return np.concatenate([steps, -steps])


def first(ladder: Ladder, resolution: float) -> Array:
    """The levels of the first round, +-h; those too short for the arguments are replaced by longer ones."""
    steps = ladder.top * ladder.ratio ** -np.arange(_LEVELS, dtype=np.float64)
    kept = steps[steps >= _LEAST_RESOLUTIONS * resolution]
    longer = ladder.top * ladder.ratio ** np.arange(1, _LEVELS - len(kept) + 1, dtype=np.float64)
    return _symmetric(np.concatenate([longer[::-1], kept]))


def cluster(ladder: Ladder, resolution: float) -> Array:
    """Eight nodes so near the base point that all they show is noise."""
    return _symmetric(max(ladder.cluster, _CLUSTER_RESOLUTIONS * resolution) * _CLUSTER)


def follow_up(ladder: Ladder, step: float) -> Array:
    """Eight nodes around a step that served another direction of the same model."""
    return _symmetric(step * ladder.follow_up)


def above(step: float) -> Array:
    """Three levels above the longest: the slope drowns in noise."""
    return _symmetric(step * 15.0 ** np.array([1.0, 2.0, 3.0]))


def below(ladder: Ladder, step: float, resolution: float) -> Array:
    """Four levels below the shortest: the function bends within it."""
    steps = step * ladder.ratio ** -np.array([1.0, 2.0, 3.0, 4.0])
    return _symmetric(steps[steps >= max(ladder.lowest, 2 * resolution)])


def between(low: float, high: float) -> Array:
    """Three levels between two neighbours: noise and truncation error are in balance there."""
    return _symmetric(low * (high / low) ** np.array([0.26, 0.51, 0.77]))
