"""One step of every cell, once for all backends: what a backend brings are a few operations on its own arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from gradaudit.recurrent.spec import Activation, Layer, RecurrentSpec

__all__ = ["Given", "Ops", "State", "Weights", "advance", "begin", "by_layer", "end", "prepared", "step"]

#: The state of one layer: h, and for an LSTM c.
State: TypeAlias = tuple[Any, ...]


class Ops(Protocol):
    """Operations on arrays that have the units on one axis, which only the backend needs to know."""

    def recurrent(self, weights: Any) -> Any:
        """R (..., H, G H) in the form that `affine` takes."""

    def vector(self, weights: Any) -> Any:
        """A vector (..., H) that is to be multiplied with or added to states."""

    def product(self, weights: Any, state: Any) -> Any:
        """H R."""

    def affine(self, source: Any, weights: Any, state: Any) -> Any:
        """Source + h R; may overwrite the source."""

    def split(self, a: Any, n: int) -> Sequence[Any]:
        """N equal parts along the units."""

    def activate(self, a: Any, activation: Activation) -> Any:
        """activation(a), softmax over the units; may overwrite a."""

    def units(self, a: Any, some: slice) -> Any:
        """Some of the units of an array that may lack the leading axes."""

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """A where the condition holds, otherwise b."""

    def is_zero(self, a: Any) -> Any:
        """Where it is 0."""


class Weights(NamedTuple):
    """A layer's weights but for W and b, which are applied to all steps at once."""

    recurrent: tuple[Any, ...]
    vectors: tuple[Any, ...]


def prepared(spec: RecurrentSpec, layer: Layer, ops: Ops, parameters: Mapping[str, Any]) -> Weights:
    """What `step` takes of a layer, once for all steps."""
    weight, width = parameters["R" + layer.suffix], spec.width
    parts = (weight[..., : 2 * width], weight[..., 2 * width :]) if spec.cell == "gru_before" else (weight,)
    vectors: tuple[Any, ...] = ()
    if spec.cell == "gru":
        vectors = (ops.vector(parameters["bn" + layer.suffix]),)
    if spec.peepholes:
        peepholes = parameters["P" + layer.suffix]
        vectors = tuple(ops.vector(peepholes[..., i, :]) for i in range(3))
    return Weights(tuple(map(ops.recurrent, parts)), vectors)


def step(spec: RecurrentSpec, ops: Ops, weights: Weights, state: State, source: Any) -> State:
    """The state after one step, from the state before and ``x W + b``; the formulas are `RecurrentSpec`'s."""
    return _STEPS[spec.cell](spec, ops, weights, state, source)


def _elman(spec: RecurrentSpec, ops: Ops, weights: Weights, state: State, source: Any) -> State:
    return (ops.activate(ops.affine(source, weights.recurrent[0], state[0]), spec.activation),)


def _lstm(_: RecurrentSpec, ops: Ops, weights: Weights, state: State, source: Any) -> State:
    h, c = state
    i, f, g, o = ops.split(ops.affine(source, weights.recurrent[0], h), 4)
    if weights.vectors:
        i, f = i + weights.vectors[0] * c, f + weights.vectors[1] * c
    c = ops.activate(f, "sigmoid") * c + ops.activate(i, "sigmoid") * ops.activate(g, "tanh")
    if weights.vectors:
        o = o + weights.vectors[2] * c
    return ops.activate(o, "sigmoid") * ops.activate(1 * c, "tanh"), c


def _gru(_: RecurrentSpec, ops: Ops, weights: Weights, state: State, source: Any) -> State:
    (h,) = state
    parts = zip(ops.split(source, 3), ops.split(ops.product(weights.recurrent[0], h), 3), strict=True)
    (r, r_h), (z, z_h), (n, n_h) = parts
    r, z = ops.activate(r + r_h, "sigmoid"), ops.activate(z + z_h, "sigmoid")
    n = ops.activate(n + r * (n_h + weights.vectors[0]), "tanh")
    return ((1 - z) * n + z * h,)


def _gru_before(_: RecurrentSpec, ops: Ops, weights: Weights, state: State, source: Any) -> State:
    (h,) = state
    r, z, n = ops.split(source, 3)
    r_h, z_h = ops.split(ops.product(weights.recurrent[0], h), 2)
    r, z = ops.activate(r + r_h, "sigmoid"), ops.activate(z + z_h, "sigmoid")
    n = ops.activate(ops.affine(n, weights.recurrent[1], r * h), "tanh")
    return ((1 - z) * n + z * h,)


_STEPS: dict[str, Callable[[RecurrentSpec, Ops, Weights, State, Any], State]] = {
    "elman": _elman,
    "lstm": _lstm,
    "gru": _gru,
    "gru_before": _gru_before,
}


class Given(NamedTuple):
    """What is given at one step beside the source; what is None is not there.

    Attributes:
        mask: whether a sequence has this step, over (N,).
        weight: of the crossing into it, see `gradaudit.recurrent.problem.Crossing`, over (N,).
        held: the state held before it, of all layers, over (N, S).
    """

    mask: Any = None
    weight: Any = None
    held: Any = None


def advance(
    spec: RecurrentSpec, ops: Ops, weights: Weights, index: int, state: State, source: Any, given: Given
) -> State:
    """The state of the ``index``-th layer after one step, with all that is given."""
    before = begin(spec, ops, index, state, given)
    return end(ops, before, step(spec, ops, weights, before, source), given)


def begin(spec: RecurrentSpec, ops: Ops, index: int, state: State, given: Given) -> State:
    """The state that enters a step, see `gradaudit.recurrent.problem.Crossing`.

    Exactly the held one where they are equal: ``w h + (1 - w) held`` would change the last bit of one in three.
    """
    if given.weight is None:
        return state
    n, width, cut = len(spec.components), spec.width, ops.is_zero(given.weight)
    held = [ops.units(given.held, slice(i * width, (i + 1) * width)) for i in range(index * n, (index + 1) * n)]
    return tuple(ops.where(cut, b, b + given.weight * (a - b)) for a, b in zip(state, held, strict=True))


def end(ops: Ops, state: State, after: State, given: Given) -> State:
    """The state after a step: as it was where the mask has no step."""
    if given.mask is None:
        return after
    return tuple(ops.where(given.mask, b, a) for a, b in zip(state, after, strict=True))


def by_layer(spec: RecurrentSpec, components: Iterable[Any]) -> list[State]:
    """The components of a whole state, the lowest layer first, as one state a layer."""
    n, found = len(spec.components), list(components)
    return [tuple(found[i : i + n]) for i in range(0, len(found), n)]
