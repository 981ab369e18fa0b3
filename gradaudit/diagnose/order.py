"""Whether an axis is time, told from the loss alone: steps that are near each other are coupled most."""

from __future__ import annotations

import numpy as np

from gradaudit.arrays import Array, eps
from gradaudit.diagnose.evidence import Evidence
from gradaudit.direction import Point, random_direction
from gradaudit.measure.plan import scales
from gradaudit.numeric.budget import Stop
from gradaudit.numeric.sampler import Sampler

__all__ = ["in_order"]

#: So many slices are looked at, the later the denser; of fewer than the second number any order is likely.
_SLICES, _LEAST = 12, 6
#: A slice is moved by this share of its size.
_MOVE = 0.3
#: Roundings of a loss in a sum of four of them, in eps.
_ROUNDINGS = 64.0
#: A chain of neighbours, as in a smoothness penalty, is coupled no farther; what a state carries on is.
_FARTHER = 3
#: Of so many other orders of the slices, this share may do as well.
_ORDERS, _CHANCE = 4000, 0.001


def in_order(evidence: Evidence, name: str, axis: int) -> bool:
    """Whether the loss couples slices along an axis the more the nearer they are, as a state that fades does.

    Rows of a weight or an embedding come in any order. The coupling of two slices is a mixed difference. What some have
    more of than others, with all, is taken off; the rest must go with the distance as in hardly any other order.
    """
    shape = evidence.model.parameters()[name].shape
    n = shape[axis]
    back = np.arange(1, n + 1) if n <= _SLICES else np.unique(np.geomspace(1, n, _SLICES).round().astype(int))
    slices = n - back[::-1]
    if len(slices) < _LEAST:
        return False
    one, other = np.triu_indices(len(slices), 1)
    try:
        coupled, least = _coupling(evidence, name, axis, slices, (one, other))
    except Stop:
        return False
    apart = np.abs(slices[one] - slices[other])
    if not np.isfinite(coupled).all() or not np.any(coupled[apart >= _FARTHER] > least):
        return False
    strength = np.log(np.maximum(coupled, least))
    members = (np.arange(len(slices)) == np.stack([one, other])[..., None]).any(axis=0).astype(float)
    rest = strength - members @ np.linalg.lstsq(members, strength, rcond=None)[0]
    rng = np.random.default_rng(evidence.options.seed)
    orders = np.array([rng.permutation(slices) for _ in range(_ORDERS)])
    found = np.log(apart) @ rest
    return bool(found < 0 and np.mean(np.log(np.abs(orders[:, one] - orders[:, other])) @ rest <= found) <= _CHANCE)


def _coupling(
    evidence: Evidence, name: str, axis: int, slices: Array, pairs: tuple[Array, Array]
) -> tuple[Array, float]:
    """The mixed difference of each pair of slices, and what rounding may leave of one.

    Raises:
        Stop: the budget is spent.
    """
    assert evidence.total is not None  # something is wrong
    source, options = evidence.total.source, evidence.options
    parameters = source.model.parameters()
    sampler = Sampler(
        source.model,
        evidence.budget,
        gradients=dict.fromkeys(parameters),
        batch_bytes=options.batch_bytes,
        dtype=source.dtype,
        digits=source.digits,
    )
    shape = parameters[name].shape
    size = np.broadcast_to(scales(parameters)[name], shape)

    def moved(*which: int) -> Point:
        along = np.isin(np.arange(shape[axis]), which)
        mask = along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return Point(random_direction(name, {name: size * mask}, options.seed), _MOVE)

    points = [moved(), *(moved(s) for s in slices), *(moved(slices[i], slices[j]) for i, j in zip(*pairs, strict=True))]
    losses, _ = sampler.values(points, "diagnosing")
    base, single, both = losses[0], losses[1 : 1 + len(slices)], losses[1 + len(slices) :]
    least = _ROUNDINGS * eps(source.digits) * float(np.abs(losses).max())
    return np.abs(both - single[pairs[0]] - single[pairs[1]] + base), least
