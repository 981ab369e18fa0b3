"""Losses at points: in batches within a memory budget, with a failed point as a missing number, never an error."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import final

import numpy as np

from gradaudit.arrays import Array, Gradients, eps
from gradaudit.direction import Direction, Point, argument_rounding, displace
from gradaudit.numeric.budget import Budget
from gradaudit.protocols import Model, SupportsAlong

__all__ = ["Sampler"]


@final
class Sampler:
    """Visits the points of one model.

    Args:
        model: whose loss; in batches if it `SupportsAlong`.
        budget: every evaluation is charged to it.
        gradients: the analytic gradient, used only to take the effect of rounded arguments out of the values, to
            first order: right for a right gradient, noise for a wrong one.
        batch_bytes: memory for one batch.
        dtype: in which the loss is computed.
        digits: the dtype in which it is handed over, ``dtype`` unless given.
    """

    def __init__(
        self,
        model: Model,
        budget: Budget,
        *,
        gradients: Gradients,
        batch_bytes: int,
        dtype: str,
        digits: str | None = None,
    ) -> None:
        self.model = model
        self.parameters = model.parameters()
        self.eps = eps(dtype)
        self.digits = eps(digits or dtype)
        self._budget = budget
        self._gradients = gradients
        self._batch_bytes = batch_bytes
        self._batching = isinstance(model, SupportsAlong)

    def values(self, points: Sequence[Point], purpose: str) -> tuple[Array, Array]:
        """The losses at K points as float64, (K,), NaN where the loss is not finite or raised; and corrections (K,).

        The corrections are to be subtracted, see `gradaudit.direction.argument_rounding`.

        Raises:
            Stop: the budget is spent.
        """
        self._budget.take(len(points), purpose)
        size = self._chunk()
        chunks = [self._visit(points[i : i + size]) for i in range(0, len(points), size)]
        losses = np.concatenate(chunks) if chunks else np.zeros(0)
        losses[~np.isfinite(losses)] = np.nan
        corrections = argument_rounding(self.parameters, points, self._gradients)
        return losses, np.where(np.isfinite(corrections), corrections, 0.0)

    def resolution(self, direction: Direction) -> float:
        """The step along v that moves a typical parameter by one unit in the last place."""
        steps = []
        for name, base in self.parameters.items():
            v = direction.block(name, base.shape)
            if v is not None:
                moved = v != 0
                steps.append(np.abs(base[moved]) * eps(base.dtype) / np.abs(v[moved]))
        flat = np.concatenate(steps) if steps else np.zeros(0)
        return float(np.median(flat)) if flat.size else 0.0

    def _chunk(self) -> int:
        if not isinstance(self.model, SupportsAlong):
            return 1
        return max(1, self._batch_bytes // max(1, self.model.point_bytes))

    def _visit(self, points: Sequence[Point]) -> Array:
        if self._batching and isinstance(self.model, SupportsAlong):
            try:
                return np.asarray(self.model.along(points), np.float64)
            except Exception:  # noqa: BLE001  # asked again point by point; if none fails there, batching was at fault
                alone = [self._alone(point) for point in points]
                self._batching = any(np.isnan(value) for value in alone)
                return np.array(alone)
        return np.array([self._alone(point) for point in points])

    def _alone(self, point: Point) -> float:
        # any exception of the user's function away from the base point is the edge of its domain
        with contextlib.suppress(Exception):
            return float(self.model.loss(displace(self.parameters, point)))
        return float("nan")
