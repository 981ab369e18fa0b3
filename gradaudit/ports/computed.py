"""A model at the first one's parameters: its loss and gradient there, as exactly as it computes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, global_norm
from gradaudit.compare import Precision
from gradaudit.errors import OptionError
from gradaudit.mapping import Correspondence
from gradaudit.measure.sources import Source, choose, rounds_inside
from gradaudit.measure.state import preserved
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model, SupportsAt, SupportsTwin

__all__ = ["Computed", "Gap", "Handed", "back", "computed", "handed"]

#: A tensor whose gradient is this small beside the whole one may be zero; so many eps of the whole are its rounding.
_NEGLIGIBLE, _WHOLE = 1e-4, 64.0
#: Moves by a unit in the last place, and how many times the largest one may be rounding: as for single gradients.
_JITTERS, _NOISE = 2, 6.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Handed:
    """A model at the parameters of the first.

    Attributes:
        model: whose base point they are.
        correspondence: how they were made.
        first: the first model's parameters.
    """

    model: Model
    correspondence: Correspondence
    first: NamedArrays


def handed(name: str, model: Model, correspondence: Correspondence, first: NamedArrays) -> Handed:
    """The model with the first one's parameters, in its own dtypes.

    Raises:
        OptionError: a parameter of the first model, other than zero, that the port does not use.
    """
    for source, where in correspondence.unused().items():
        n_left = int(np.count_nonzero(where & (first[source] != 0)))
        if n_left:
            msg = f"{n_left} of {where.size} entries of {source!r}, which are not zero, are in no parameter of {name!r}"
            hint = f"use {source!r} in a recipe, or set it to zero in the first model"
            raise OptionError(msg, where=f"mapping[{name!r}]", hint=hint)
    exact = correspondence.apply(first)
    values = {n: exact[n].astype(p.dtype) for n, p in model.parameters().items()}
    if all(np.array_equal(values[n], p) for n, p in model.parameters().items()):
        moved = model
    else:
        moved = model.at(values) if isinstance(model, SupportsAt) else _Moved(model, values)
    return Handed(model=moved, correspondence=correspondence, first=first)


@final
class _Moved:
    """A model that has a loss at other parameters than its own."""

    def __init__(self, model: Model, parameters: NamedArrays) -> None:
        self._model = model
        self._parameters = parameters

    def parameters(self) -> NamedArrays:
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        return self._model.value_and_grad(parameters)

    def twin(self) -> Model | None:
        twin = self._model.twin() if isinstance(self._model, SupportsTwin) else None
        if twin is None:
            return None
        return _Moved(twin, {n: self._parameters[n].astype(p.dtype) for n, p in twin.parameters().items()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Computed:
    """Loss and gradient of a model, as exactly as it computes.

    Attributes:
        handed: the model.
        source: its twin, or itself.
        eps: of what it computes in.
        values: the port's parameters.
        loss: there.
        gradients: by the first model's parameters, float64.
        loss_noise: how far the loss moves with the last place of the parameters: its conditioning.
        noise: the same of the gradient, by tensor, a norm.
        compared: which entries of the first model's parameters the port has, 0 or 1.
        budget: what comparing it is charged to.
    """

    handed: Handed
    source: Model
    eps: float
    values: NamedArrays
    loss: float
    gradients: NamedArrays
    loss_noise: float
    noise: Mapping[str, float]
    compared: NamedArrays
    budget: Budget


def computed(model: Handed, options: AuditOptions) -> Computed:
    """The model's loss and gradient, by its float64 twin where it has one whose loss is the same.

    Args:
        model: the model.
        options: seed and max_evaluations are used.
    """
    native, budget = model.model, Budget(options.max_evaluations)
    budget.take(1, "gradient")
    with preserved(native):
        loss, gradients = native.value_and_grad(native.parameters())
    with preserved(native):
        source = choose(native, loss, gradients, budget, seed=options.seed)
        single = _is_single(source, budget, options.seed)
    exact = model.correspondence.apply(model.first)
    values = {n: exact[n].astype(p.dtype) for n, p in source.model.parameters().items()}
    eps = float(np.finfo(np.float32 if single else np.float64).eps)

    def at(point: NamedArrays) -> tuple[float, dict[str, Array]]:
        budget.take(1, "gradient")
        with preserved(native), np.errstate(all="ignore"):
            loss, gradients = source.model.value_and_grad(point)
        return float(loss), back(model.correspondence, gradients)

    own_loss, own = at(values)
    moved = [at(_shaken(values, eps, options.seed + i)) for i in range(_JITTERS)]
    left = model.correspondence.unused()
    return Computed(
        handed=model,
        source=source.model,
        eps=eps,
        values=values,
        loss=own_loss,
        gradients=own,
        loss_noise=max(abs(loss - own_loss) for loss, _ in moved),
        noise={n: max(global_norm({n: there[n] - g}) for _, there in moved) for n, g in own.items()},
        compared={n: 1.0 - left.get(n, np.zeros(p.shape)) for n, p in model.first.items()},
        budget=budget,
    )


def _is_single(source: Source, budget: Budget, seed: int) -> bool:
    """Whether it computes in float32, at least inside; also where the budget is too small to find out."""
    if source.dtype != "float64":
        return True
    with suppress(Stop):
        return source.reference is not None and rounds_inside(source, budget, seed)
    return True


def _shaken(values: NamedArrays, eps: float, seed: int) -> dict[str, Array]:
    """Every entry up or down by about a unit in the last place."""
    rng = np.random.default_rng([seed, 5])
    signs = {n: rng.choice(np.array([-1.0, 1.0]), p.shape) for n, p in values.items()}
    return {n: np.asarray(p * (1 + eps * signs[n]), p.dtype) for n, p in values.items()}


def back(correspondence: Correspondence, gradients: Gradients) -> dict[str, Array]:
    """A port's gradient by the first model's parameters, float64; zero where there is none."""
    back = correspondence.adjoint(gradients)
    return {n: np.zeros(correspondence.shapes[n]) if g is None else g for n, g in back.items()}


@final
class Gap:
    """The difference of two models, and what rounding accounts for.

    Two programs for one function differ by their rounding: by the tolerance of `gradaudit.compare` for what they
    compute in, and by some times what a unit in the last place of the parameters does.

    Attributes:
        loss: the losses' difference, relative.
        losses_agree: rounding accounts for it.
        tensors: the gradients' difference by tensor, relative.
        different: the tensors for which rounding does not account for it, the worst first.
        resolution: a difference of this size, relative to loss and whole gradient, would have been seen.
    """

    def __init__(self, first: Computed, port: Computed) -> None:
        eps = max(first.eps, port.eps)
        tolerance = Precision(analytic=eps, numeric=eps).tolerance
        parameters = first.handed.first
        moves = {n: g * np.asarray(parameters[n], np.float64) for n, g in first.gradients.items()}
        scale = max(abs(first.loss), global_norm(moves))
        allowed = tolerance * scale + _NOISE * max(first.loss_noise, port.loss_noise)
        gap = abs(port.loss - first.loss)
        self.loss = _relative(gap, abs(first.loss))
        self.losses_agree = gap <= allowed
        shared = {n: first.compared[n] * port.compared[n] for n in first.gradients}
        own, theirs = ({n: shared[n] * g for n, g in c.gradients.items()} for c in (first, port))
        whole = global_norm(own)
        apart = {n: global_norm({n: theirs[n] - g}) for n, g in own.items()}
        sizes = {n: max(global_norm({n: g}), _NEGLIGIBLE * whole) for n, g in own.items()}
        noise = {n: _NOISE * max(first.noise[n], port.noise[n]) + _WHOLE * eps * whole for n in own}
        limits = {n: tolerance * sizes[n] + noise[n] for n in own}
        self.tensors = {n: _relative(d, sizes[n]) for n, d in apart.items()}
        self.different = sorted((n for n in apart if not apart[n] <= limits[n]), key=lambda n: -self.tensors[n])
        self.resolution = max(_relative(allowed, scale), *(_relative(limit, whole) for limit in limits.values()))

    @property
    def gradient(self) -> float:
        """The largest relative difference of a tensor."""
        return max(self.tensors.values(), default=0.0)

    @property
    def agrees(self) -> bool:
        """Losses and gradients are the same, as far as rounding lets one see."""
        return self.losses_agree and not self.different


def _relative(difference: float, size: float) -> float:
    return 0.0 if difference == 0 else difference / size if size > 0 else float("inf")
