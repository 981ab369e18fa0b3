"""A loss that stands still and a gradient of zero agree; but does the loss depend on these parameters at all?

Who audits a loss of another model is told AGREE otherwise, by numbers that are all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gradaudit.arrays import Gradients
from gradaudit.compare import Verdict
from gradaudit.direction import Point, displace, random_direction
from gradaudit.measure import plan
from gradaudit.measure.judgement import Measurement
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.protocols import Model

__all__ = ["FARTHEST", "N_FAR", "told_from_constant"]

#: Far beyond the ladder, to both sides: what is clipped, saturated or switched off comes alive somewhere there.
_FAR = (1.0, 3.0, 10.0, 30.0)
FARTHEST, N_FAR = _FAR[-1], 2 * len(_FAR)
_STRIDE = 104_729


def told_from_constant(found: Measurement, gradients: Gradients, budget: Budget, seed: int) -> Measurement:
    """The same; INCONCLUSIVE where the loss does not depend on these parameters, for then nothing was compared.

    Asked where the gradient is zero and the loss is the same along all directions: by eight losses, far away. If one is
    another, this is a flat place, and zero is right.

    Args:
        found: the gradient against the loss.
        gradients: that gradient.
        budget: is charged.
        seed: of the directions.
    """
    estimates = [line.estimate for line in found.lines]
    flat = bool(estimates) and all(e.constant or e.still for e in estimates)
    if found.verdict is not Verdict.AGREE or not flat or any(np.any(g) for g in gradients.values() if g is not None):
        return found
    if not estimates[0].constant:  # it moves along the first line already
        return replace(found, still="here")
    try:
        budget.take(N_FAR, "far away")
    except Stop:
        return replace(found, complete=False)
    model = found.source.model
    base = float(model.loss(model.parameters()))
    if any(loss != base for loss in _far(model, gradients, seed)):
        return replace(found, still="here")
    return replace(
        found,
        still="everywhere",
        verdicts=dict.fromkeys(found.verdicts, Verdict.INCONCLUSIVE),
        resolutions=dict.fromkeys(found.resolutions, float("inf")),
        verdict=Verdict.INCONCLUSIVE,
    )


def _far(model: Model, gradients: Gradients, seed: int) -> Iterator[float]:
    """The losses far away, NaN where there is none."""
    parameters = model.parameters()
    lengths = plan.scales({name: p for name, p in parameters.items() if name in gradients})
    for i, t in enumerate(sign * far for far in _FAR for sign in (1, -1)):
        direction = random_direction("far away", lengths, seed + _STRIDE * (i + 1))
        try:
            yield float(model.loss(displace(parameters, Point(direction, t))))
        except Exception:  # noqa: BLE001  # outside its domain, so it does depend on them
            yield float("nan")
