"""What rounding leaves of a float32 gradient that has vanished, which is no error.

1 - tanh(a)^2, far out, is off by eps of 1, whatever is left of it, and the same at all points nearby. So a gradient is
compared with what it would be if it had not vanished: with how far the loss ranges over parameters of that size. An
offset of the loss does not count then.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.measure import plan
from gradaudit.numeric.budget import Budget
from gradaudit.protocols import Model

__all__ = ["but_vanished"]

#: So many losses tell how far it ranges. A tensor of less than so many eps of that is rounding altogether.
_ELSEWHERE, _NOTHING = 8, 64.0


def but_vanished(
    beyond: dict[str, Array],
    gradients: tuple[Gradients, Gradients],
    loss: Scalar,
    twin: Model,
    native: NamedArrays,
    budget: Budget,
    *,
    seed: int,
    unit: float,
) -> dict[str, Array]:
    """What is beyond rounding, less an eps of a gradient that has not vanished.

    Args:
        beyond: by tensor and entry.
        gradients: the native one and the twin's, at the base point.
        loss: there.
        twin: whose losses elsewhere are taken, eight of them.
        native: the base point.
        budget: is charged.
        seed: of the points.
        unit: machine epsilon of the native gradient.

    Raises:
        Stop: the budget is spent.
    """
    budget.take(_ELSEWHERE, "twin")
    seen = [float(loss)]
    for j in range(_ELSEWHERE):
        rng = np.random.default_rng([seed, 5, j])
        point = {n: p * rng.uniform(-1, 1, p.shape) for n, p in native.items()}
        with suppress(Exception):  # outside the domain
            seen.append(float(twin.loss({n: x.astype(twin.parameters()[n].dtype) for n, x in point.items()})))
    finite = np.array([x for x in seen if np.isfinite(x)])
    lengths = plan.scales({n: native[n] for n in beyond})
    sizes = {n: max(_size(g[n], lengths[n]) for g in gradients) for n in beyond}
    # where the loss runs away elsewhere, as a chaotic map's does, that tells nothing of here
    here = max(abs(float(loss)), float(np.median(np.abs(finite)))) + float(np.linalg.norm([*sizes.values()]))
    left = unit * min(float(np.ptp(finite)), here)
    return {n: _less(b, left / lengths[n] if sizes[n] >= _NOTHING * left else np.inf) for n, b in beyond.items()}


def _size(gradient: Array | None, lengths: float | Array) -> float:
    """||g∘s||, s the scale of the steps."""
    return 0.0 if gradient is None else float(np.linalg.norm(np.asarray(gradient, np.float64) * lengths))


def _less(beyond: Array, left: float | Array) -> Array:
    """Moved towards zero by so much."""
    return np.asarray(np.sign(beyond) * np.maximum(np.abs(beyond) - left, 0.0))
