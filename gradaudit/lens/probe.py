"""What can be asked of a model along one axis of one of its tensors: gradients elsewhere, and numeric derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, eps
from gradaudit.direction import Direction, Point, displace
from gradaudit.lens.slopes import NEARBY, NODES, richardson
from gradaudit.measure.baseline import gradient_at
from gradaudit.numeric.budget import Budget
from gradaudit.numeric.noise import cluster_residual
from gradaudit.numeric.sampler import Sampler
from gradaudit.protocols import Model, SupportsAt

__all__ = ["Probe", "Slope"]

#: How far the inputs are replaced, in units of their size: less where the loss or gradient is not finite there.
_REPLACED = (1.0, 0.1, 0.01)
#: Displacements in units of the usual one.
_LENGTHS = (1.0, 0.25, 0.0625)
#: Seeds apart.
_PROBING, _REPLACING = 31, 37


class Slope(NamedTuple):
    """A numeric derivative along a displacement, and its error."""

    value: float
    error: float


@final
class _Elsewhere:
    """The same loss at other parameters, of a model that cannot say so itself."""

    def __init__(self, model: Model, parameters: NamedArrays) -> None:
        self._model, self._parameters = model, parameters

    def parameters(self) -> NamedArrays:
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        return self._model.value_and_grad(parameters)


@final
@dataclass(eq=False)
class Probe:
    """One tensor with an axis of time, steps 1..T.

    Attributes:
        model: whose gradient is in question.
        numeric: the same loss, in the widest dtype that there is.
        digits: the dtype of its loss.
        name: of the tensor.
        axis: of time.
        budget: losses and gradients are charged to it.
        seed: of all displacements.
        batch_bytes: memory for many losses at once.
    """

    model: Model
    numeric: Model
    digits: str
    name: str
    axis: int
    budget: Budget
    seed: int = 0
    batch_bytes: int = 64 * 2**20
    _gradients: dict[int, Array] = field(default_factory=dict)
    _slopes: dict[tuple[int, int, int, float], Slope] = field(default_factory=dict)

    @property
    def n_steps(self) -> int:
        """T."""
        return int(self.model.parameters()[self.name].shape[self.axis])

    @cached_property
    def size(self) -> float:
        """The rms of the tensor's entries."""
        x = self.model.parameters()[self.name].astype(np.float64)
        return float(np.sqrt(np.mean(np.square(x)))) or 1.0

    @property
    def eps(self) -> float:
        """Of the gradient's dtype."""
        return eps(self.model.parameters()[self.name].dtype)

    def gradient(self, replaced: int = 0) -> Array:
        """The analytic gradient (T, M), the inputs of the steps s = ``replaced`` to T being others; 0: the base point.

        A missing gradient is zero.
        """
        if replaced not in self._gradients:
            parameters = self._parameters(replaced)
            found = gradient_at(self.model, parameters, self.budget)[self.name]
            full = np.zeros_like(parameters[self.name]) if found is None else found
            self._gradients[replaced] = np.moveaxis(full, self.axis, 0).reshape(self.n_steps, -1)
        return self._gradients[replaced]

    @cached_property
    def repeats(self) -> bool:
        """Whether a second gradient is the first one to the last bit, and there is one."""
        again = gradient_at(self.model, self.model.parameters(), self.budget)[self.name]
        if again is None or not np.isfinite(again).all():
            return False
        flat = np.moveaxis(again, self.axis, 0).reshape(self.n_steps, -1)
        return bool(np.array_equal(self.gradient(), flat))

    def analytic(self, first: int, last: int) -> tuple[float, float]:
        """The gradient along the displacement of the steps ``first`` to ``last``, and the norm of its terms."""
        steps = self._direction(first, last).block(self.name, self.model.parameters()[self.name].shape)
        assert steps is not None  # its one tensor
        products = self.gradient().astype(np.float64) * np.moveaxis(steps, self.axis, 0).reshape(self.n_steps, -1)
        return float(products.sum()), float(np.linalg.norm(products))

    def slope(self, first: int, last: int, replaced: int = 0, *, within: float = np.inf) -> Slope:
        """The numeric derivative along the same displacement, six losses; or more.

        Args:
            first: step that is displaced.
            last: step that is displaced.
            replaced: as for `gradient`.
            within: the error that is good enough; while it is larger, shorter displacements are tried, as they help.

        Raises:
            Stop: the budget is spent.
        """
        best = self._slope(first, last, replaced, _LENGTHS[0])
        for length in _LENGTHS[1:]:
            if best.error <= within or not np.isfinite(best.error):
                break
            found = self._slope(first, last, replaced, length)
            if not found.error < best.error:
                break
            best = found
        return best

    def _slope(self, first: int, last: int, replaced: int, length: float) -> Slope:
        key = first, last, replaced, length
        if key not in self._slopes:
            points = [Point(self._direction(first, last), length * t) for t in NODES]
            losses, _ = self._sampler(replaced).values(points, "identifying")
            value, error = richardson(losses, max(self._noise, eps(self.digits) * float(np.abs(losses).max())))
            self._slopes[key] = Slope(float(value) / length, float(error) / length)
        return self._slopes[key]

    @cached_property
    def _noise(self) -> float:
        """The rounding of one loss, which can be a small difference of large numbers; eight losses."""
        points = [Point(self._direction(1, self.n_steps), t) for t in NEARBY]
        return cluster_residual(NEARBY, self._sampler(0).values(points, "identifying")[0])

    def changed(self, replaced: int) -> Array:
        """Whether the gradients of the steps 1..s change with the inputs of the steps s = ``replaced`` to T: (s,)."""
        one, other = self.gradient(), self.gradient(replaced)
        return np.asarray(np.any(one[:replaced] != other[:replaced], axis=1))

    def moved(self, first: int, last: int) -> NamedArrays:
        """The parameters of the numeric model with the inputs of the steps ``first`` to ``last`` replaced."""
        support = {self.name: self._support(first, last)}
        direction = Direction(label="replaced", scales=support, seed=self.seed + _REPLACING)
        return displace(self.numeric.parameters(), Point(direction, self._distance))

    def _sampler(self, replaced: int) -> Sampler:
        model = self.numeric
        if replaced:
            # the very numbers at which the gradient was taken, in a wider dtype
            moved = {n: p.astype(model.parameters()[n].dtype) for n, p in self._parameters(replaced).items()}
            model = model.at(moved) if isinstance(model, SupportsAt) else _Elsewhere(model, moved)
        nothing = dict.fromkeys(model.parameters())
        return Sampler(model, self.budget, gradients=nothing, batch_bytes=self.batch_bytes, dtype=self.digits)

    def _support(self, first: int, last: int) -> Array:
        """The size of the tensor in the steps ``first`` to ``last``, else 0."""
        shape = self.model.parameters()[self.name].shape
        steps = np.arange(1, self.n_steps + 1).reshape([-1 if i == self.axis else 1 for i in range(len(shape))])
        return np.broadcast_to(np.where((steps >= first) & (steps <= last), self.size, 0.0), shape)

    def _direction(self, first: int, last: int) -> Direction:
        label = f"{self.name}, steps {first} to {last}"
        return Direction(label=label, scales={self.name: self._support(first, last)}, seed=self.seed + _PROBING)

    def _parameters(self, replaced: int) -> NamedArrays:
        return self._replaced(replaced, self._distance) if replaced else self.model.parameters()

    def _replaced(self, step: int, distance: float) -> NamedArrays:
        support = {self.name: self._support(step, self.n_steps)}
        direction = Direction(label="replaced", scales=support, seed=self.seed + _REPLACING)
        return displace(self.model.parameters(), Point(direction, distance))

    @cached_property
    def _distance(self) -> float:
        """The largest replacement of all steps but the first at which the gradient is finite."""
        for distance in _REPLACED:
            gradient = gradient_at(self.model, self._replaced(2, distance), self.budget)[self.name]
            if gradient is not None and np.isfinite(gradient).all():
                return distance
        return _REPLACED[-1]
