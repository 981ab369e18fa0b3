"""Who supplies the numbers, best first: a float64 twin whose loss agrees, unreduced terms, the loss as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar, eps
from gradaudit.direction import Point, displace, random_direction
from gradaudit.measure.baseline import gradient_at, gradient_of
from gradaudit.measure.plan import scales
from gradaudit.measure.rounding import beside_own, beyond_rounding
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.protocols import Model, SupportsMixedPrecision, SupportsTerms, SupportsTwin, SupportsVariants

__all__ = ["Source", "choose", "rounds_inside", "stands_still"]

#: A twin computes the same loss up to the rounding of the native one.
_SAME = 1e3
#: So many roundings of a narrower format that is meant (a mean of many of them is off by less).
_SAME_NARROW = 8.0
_JITTERS = 2
#: Steps, relative to the parameters' size, below and above what float32 resolves; how much flatter the loss is below
#: if it rounds there; the noise of one difference.
_UNSEEN, _SEEN, _FLAT, _ULPS = 1e-11, 1e-5, 0.9, 64.0


#: How far, relative to the parameters' size, it is looked whether a loss moves that its twin says does not.
_DISPLACED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A model that supplies losses.

    Attributes:
        model: whose losses are differenced.
        name: how a report names it.
        dtype: in which the loss is computed.
        digits: the dtype in which it is handed over: wider than ``dtype`` where terms are summed in float64.
        reference: the gradient of the float64 twin, beside which the rounding of a float32 gradient shows.
        excess: what of the difference to it is more than rounding, by entry.
        related: tensors one of which is off by more than rounding; of several it cannot be told which.
        jittered: where there is no twin, gradients at parameters moved by about a unit in the last place.
        narrow: machine epsilon of a narrower format that parts of the loss are meant to compute in; 0: of none.
    """

    model: Model
    name: str
    dtype: str
    digits: str
    reference: Gradients | None = None
    excess: Gradients | None = None
    related: tuple[str, ...] = ()
    jittered: tuple[Gradients, ...] = ()
    narrow: float = 0.0


def choose(model: Model, loss: Scalar, gradients: Gradients, budget: Budget, *, seed: int, twin: bool = True) -> Source:
    """The float64 twin if the model offers one and its loss is the native one within rounding; else what there is.

    Args:
        model: the model.
        loss: at its base point.
        gradients: there.
        budget: gradients and the twin's loss are charged to it.
        seed: of what is drawn.
        twin: False: not the twin.
    """
    if twin and (source := _twin(model, loss, gradients, budget, seed)) is not None:
        return source
    dtype = str(loss.dtype)
    if loss.dtype == np.float64:
        return Source(model=model, name="the float64 loss itself", dtype=dtype, digits=dtype)
    jittered = tuple(_jittered(model, budget, seed + i) for i in range(_JITTERS))
    if isinstance(model, SupportsTerms):
        summed = _Summed(model)
        name = f"{dtype} terms, summed in float64"
        return Source(model=summed, name=name, dtype=dtype, digits="float64", jittered=jittered)
    return Source(model=model, name=f"the {dtype} loss itself", dtype=dtype, digits=dtype, jittered=jittered)


def _twin(model: Model, loss: Scalar, gradients: Gradients, budget: Budget, seed: int) -> Source | None:
    if not isinstance(model, SupportsTwin):
        return None
    try:
        twin = model.twin()
        if twin is None:
            return None
        budget.take(1, "twin")
        twin_loss = as_scalar(twin.loss(twin.parameters()), "twin().loss()")
        narrow = (model.narrow() if isinstance(model, SupportsMixedPrecision) else None) or 0.0
        agrees = abs(float(twin_loss) - float(loss)) <= _same(loss, narrow)
        if twin_loss.dtype != np.float64 or not agrees:
            return None
        _, reference = gradient_of(twin, budget)
        rounding = beyond_rounding((model, twin), gradients, reference, loss, budget, seed, narrow=narrow)
        excess = rounding.excess
        own = _own(model, budget) if any(x.any() for x in excess.values()) else None
        if own is not None:
            excess = beside_own(excess, gradients, own, narrow=narrow)
    except Stop:
        # no room for the twin's loss: measuring stops at its first request, and reports what it has
        return None
    except Exception:  # noqa: BLE001  # a function that cannot run in float64 has no twin
        return None
    return Source(
        model=twin,
        name="a float64 twin",
        dtype="float64",
        digits="float64",
        reference=reference,
        excess=excess,
        related=rounding.related,
        narrow=narrow,
    )


def _own(model: Model, budget: Budget) -> Gradients | None:
    """The gradient that a step's objective has of its own, in the step's precision; None: it is no step, or has none.

    Raises:
        Stop: the budget is spent.
    """
    if not isinstance(model, SupportsVariants):
        return None
    try:
        plain = next((v.model for v in model.variants() or () if v.kind == "objective"), None)
        return None if plain is None else gradient_of(plain, budget)[1]
    except Stop:
        raise
    except Exception:  # noqa: BLE001  # without it the points nearby tell what there is to tell
        return None


def rounds_inside(source: Source, budget: Budget, seed: int) -> bool:
    """Whether a twin computes some of its loss in float32 after all: it stands still where parameters move a little.

    For each tensor the slope over a step that float32 cannot see is compared with that over one that it can; two
    evaluations each. A loss that is chaotic, or that bends, is steeper over the short one.

    Raises:
        Stop: the budget is spent.
    """
    parameters = source.model.parameters()
    base = float(source.model.loss(parameters))
    noise = _ULPS * float(np.finfo(np.float64).eps) * abs(base) / _UNSEEN
    for i, (name, scale) in enumerate(scales(parameters).items()):
        direction = random_direction(name, {name: scale}, seed + i)
        budget.take(2, "twin")
        slopes = [
            abs(float(source.model.loss(displace(parameters, Point(direction, t)))) - base) / t
            for t in (_UNSEEN, _SEEN)
        ]
        if slopes[0] + noise < _FLAT * slopes[1]:
            return True
    return False


def stands_still(model: Model, loss: Scalar, source: Source, names: Sequence[str], budget: Budget, seed: int) -> bool:
    """Whether a twin, which short steps of these tensors do not move, is to blame: it rounds, or leaves them out.

    That its loss is the same at the base point does not tell: what a twin leaves out may be there already. So both
    losses are asked far off, one evaluation each. The twin's goes first: what it leaves out is there again once the
    native loss has been at that point.

    Raises:
        Stop: the budget is spent.
    """
    lengths = scales(source.model.parameters())
    point = Point(random_direction("still", {name: lengths[name] for name in names}, seed), _DISPLACED)
    budget.take(2, "twin")
    try:
        twin, native = (float(m.loss(displace(m.parameters(), point))) for m in (source.model, model))
    except Exception:  # noqa: BLE001  # outside the domain nobody moves
        return False
    moved = abs(native - float(loss))
    if not moved > _same(loss, source.narrow):
        return False
    return abs(twin - native) > 0.5 * moved or rounds_inside(source, budget, seed)


def _same(loss: Scalar, narrow: float) -> float:
    """By how much a twin's loss may differ."""
    return max(_SAME * eps(loss.dtype), _SAME_NARROW * narrow) * abs(float(loss))


def _jittered(model: Model, budget: Budget, seed: int) -> Gradients:
    moved = {}
    for name, p in model.parameters().items():
        # half a unit rounds to none or to one: the parameters move by what their own storage leaves open
        moves = np.random.default_rng([seed, 4]).random(p.shape) < 0.5
        moved[name] = (p + np.where(moves, _signs(p, seed) * np.spacing(np.abs(p)), 0)).astype(p.dtype)
    return gradient_at(model, moved, budget)


def _signs(p: Array, seed: int) -> Array:
    return np.random.default_rng([seed, 3]).choice(np.array([-1.0, 1.0]), p.shape)


@final
class _Summed:
    """A model whose loss is the float64 sum of its terms."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def parameters(self) -> NamedArrays:
        return self._model.parameters()

    def loss(self, parameters: NamedArrays) -> Scalar:
        assert isinstance(self._model, SupportsTerms)  # see choose
        return np.float64(np.asarray(self._model.terms(parameters), np.float64).sum())

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        return self._model.value_and_grad(parameters)
