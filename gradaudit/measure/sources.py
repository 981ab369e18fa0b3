"""Who supplies the numbers: a float64 twin of the model where its loss agrees, otherwise the model as it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradaudit.arrays import Scalar, as_scalar, eps
from gradaudit.numeric.budget import Budget
from gradaudit.protocols import Model, SupportsTwin

__all__ = ["Source", "choose"]

#: A twin computes the same loss up to the rounding of the native one.
_SAME = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that supplies losses, and how a report names it."""

    model: Model
    name: str
    dtype: str


def choose(model: Model, loss: Scalar, budget: Budget) -> Source:
    """The float64 twin if the model offers one and its loss is the native one within rounding."""
    native = Source(model=model, name=f"the {loss.dtype} loss itself", dtype=str(loss.dtype))
    if not isinstance(model, SupportsTwin):
        return native
    try:
        twin = model.twin()
        if twin is None:
            return native
        budget.take(1, "twin")
        twin_loss = as_scalar(twin.loss(twin.parameters()), "twin().loss()")
    except Exception:  # noqa: BLE001  # a function that cannot run in float64 has no twin
        return native
    agrees = abs(float(twin_loss) - float(loss)) <= _SAME * eps(loss.dtype) * abs(float(loss))
    if twin_loss.dtype != np.float64 or not agrees:
        return native
    return Source(model=twin, name="a float64 twin", dtype="float64")
