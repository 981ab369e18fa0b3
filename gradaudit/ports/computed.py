"""A model at the first one's parameters: its loss and gradient there, as exactly as it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, global_norm
from gradaudit.compare import Precision
from gradaudit.errors import OptionError
from gradaudit.mapping import Correspondence
from gradaudit.measure.sources import choose, rounds_inside
from gradaudit.measure.state import preserved
from gradaudit.numeric.budget import Budget
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model, SupportsAt, SupportsTwin

__all__ = ["Computed", "Gap", "Handed", "back", "computed", "handed"]

#: A tensor whose gradient is this small beside the whole one may be zero; so many eps of the whole are its rounding.
_NEGLIGIBLE, _WHOLE = 1e-4, 64.0


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
        compared: which entries of the first model's parameters the port has, 0 or 1.
    """

    handed: Handed
    source: Model
    eps: float
    values: NamedArrays
    loss: float
    gradients: NamedArrays
    compared: NamedArrays


def computed(model: Handed, options: AuditOptions) -> Computed:
    """The model's loss and gradient, by its float64 twin where it has one whose loss is the same.

    Args:
        model: the model.
        options: seed and max_evaluations are used.
    """
    native, budget = model.model, Budget(options.max_evaluations)
    with preserved(native):
        loss, gradients = native.value_and_grad(native.parameters())
    with preserved(native):
        source = choose(native, loss, gradients, budget, seed=options.seed)
        single = source.dtype != "float64" or (
            source.reference is not None and rounds_inside(source, budget, options.seed)
        )
    exact = model.correspondence.apply(model.first)
    values = {n: exact[n].astype(p.dtype) for n, p in source.model.parameters().items()}
    with preserved(native):
        loss, gradients = source.model.value_and_grad(values)
    left = model.correspondence.unused()
    return Computed(
        handed=model,
        source=source.model,
        eps=float(np.finfo(np.float32 if single else np.float64).eps),
        values=values,
        loss=float(loss),
        gradients=back(model.correspondence, gradients),
        compared={n: 1.0 - left.get(n, np.zeros(p.shape)) for n, p in model.first.items()},
    )


def back(correspondence: Correspondence, gradients: Gradients) -> dict[str, Array]:
    """A port's gradient by the first model's parameters, float64; zero where there is none."""
    back = correspondence.adjoint(gradients)
    return {n: np.zeros(correspondence.shapes[n]) if g is None else g for n, g in back.items()}


@final
class Gap:
    """The difference of two models, and what rounding accounts for."""

    def __init__(self, first: Computed, port: Computed) -> None:
        eps = max(first.eps, port.eps)
        self._tolerance = Precision(analytic=eps, numeric=eps).tolerance
        parameters = first.handed.first
        size = global_norm({n: g * np.asarray(parameters[n], np.float64) for n, g in first.gradients.items()})
        gap = abs(port.loss - first.loss)
        self.loss = 0.0 if gap == 0 else gap / abs(first.loss) if first.loss else float("inf")
        self.losses_agree = gap <= self._tolerance * max(abs(first.loss), size)
        shared = {n: first.compared[n] * port.compared[n] for n in first.gradients}
        own, theirs = ({n: shared[n] * g for n, g in c.gradients.items()} for c in (first, port))
        whole = global_norm(own)
        apart = {n: global_norm({n: theirs[n] - g}) for n, g in own.items()}
        sizes = {n: max(global_norm({n: g}), _NEGLIGIBLE * whole) for n, g in own.items()}
        rounding = _WHOLE * eps * whole
        self.tensors = {n: d / sizes[n] if sizes[n] > 0 else (float("inf") if d > 0 else 0.0) for n, d in apart.items()}
        self.different = [n for n in apart if not apart[n] <= self._tolerance * sizes[n] + rounding]
        self.different.sort(key=lambda n: -self.tensors[n])

    @property
    def gradient(self) -> float:
        """The largest relative difference of a tensor."""
        return max(self.tensors.values(), default=0.0)

    @property
    def agrees(self) -> bool:
        """Losses and gradients are the same, as far as rounding lets one see."""
        return self.losses_agree and not self.different

    def resolved(self, significant: float | None) -> bool:
        """Whether a difference that matters would have been seen."""
        return significant is None or self._tolerance <= significant
