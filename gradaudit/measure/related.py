"""Float32 rounding that is amplified makes a relation between the entries of a gradient; an error breaks it.

In a chaotic map all entries are off along the same few directions, those in which the map stretches, whatever is
rounded. So each entry's difference to the float64 twin's gradient, at many points, is fitted by those of all others and
a constant (least squares, Gauss 1809; the constant over its standard error is Student's t, 1908). The constant is what
repeats and has no part in the relation: an error. Of which entry a broken relation does not say: each of them shows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradaudit.arrays import Array

__all__ = ["amplified", "broken"]

#: Seventeen points tell of so many entries: nine degrees of freedom are left.
_FEW = 8
_LEAST_DEGREES = 9
#: Entries of less than this share of the gradient are left out; differences below this share of an entry are no
#: amplified rounding.
_SHARE, _AMPLIFIED = 0.01, 1e-4
#: What the others leave of an entry's rounding must be so many eps of it, so that it is drawn anew at each point; a
#: constant of so many standard errors is no rounding: with nine degrees of freedom that happens by chance with 8e-7.
_DRAWN, _CLEAR = 50.0, 12.0
#: Constants that float32 stores otherwise break the relation as the parameters do, moved by so many last places.
_STORED = 4.0


def amplified(apart: Array, gradient: Array, lengths: Array) -> bool:
    """Whether a gradient of few entries is off by so much, in one that counts, that the relation is worth its points.

    Args:
        apart: the native gradient minus the twin's, (n,).
        gradient: the twin's, (n,).
        lengths: the typical size of a step in each entry, (n,).
    """
    if len(gradient) > _FEW:
        return False
    return bool((np.abs(apart) > _AMPLIFIED * np.abs(gradient))[_counting(gradient, lengths)].any())


def broken(
    apart: Sequence[Array],
    moves: Array,
    gradient: Array,
    lengths: Array,
    *,
    repeating: Array,
    unit: float,
) -> bool:
    """Whether one of the entries is off by more than rounding.

    Args:
        apart: as in `amplified`, at each of the points.
        moves: by how much the last places of the parameters move the twin's gradient, along random directions, (J, n).
        gradient: the twin's at the base point, (n,).
        lengths: the typical size of a step in each entry, (n,).
        repeating: by how much each entry may be off in the same way everywhere, by functions and sums of data, (n,).
        unit: machine epsilon of the native gradient.
    """
    points = np.array(apart)
    degrees = len(points) - len(gradient)
    if len(gradient) > _FEW or degrees < _LEAST_DEGREES:
        return False
    for k in _counting(gradient, lengths):
        others = np.delete(points, k, axis=1)
        sizes = np.abs(others).max(axis=0)
        sizes[sizes == 0] = 1.0
        design = np.column_stack([np.ones(len(points)), others / sizes])
        inverse = np.linalg.pinv(design)
        fit = inverse @ points[:, k]
        rest = points[:, k] - design @ fit
        noise = float(np.sqrt(rest @ rest / degrees))
        relation = np.insert(-fit[1:] / sizes, k, 1.0)
        allowed = np.abs(relation) @ repeating + _CLEAR * noise * float(np.linalg.norm(inverse[0]))
        allowed += _STORED * float(np.sqrt(np.mean(np.square(moves @ relation))))
        if noise > _DRAWN * unit * abs(gradient[k]) and abs(fit[0]) > allowed:
            return True
    return False


def _counting(gradient: Array, lengths: Array) -> Array:
    """The entries that make up a share of the gradient, by their indices."""
    sizes = np.abs(gradient) * lengths
    return np.flatnonzero(sizes > _SHARE * np.linalg.norm(sizes))
