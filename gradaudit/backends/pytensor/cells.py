"""The dense and the recurrent layers as PyTensor graphs; the recurrent ones are PyTensor's own `scan`.

Layout: time first, then K parameter copies, sequences, units, (T, K, N, H).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import pytensor
from pytensor import tensor as pt

from gradaudit.backends.pytensor.modes import LIGHT
from gradaudit.recurrent import Activation, RecurrentSpec
from gradaudit.recurrent.cells import Given, State, Weights, advance, prepared
from gradaudit.recurrent.spec import Layer

__all__ = ["Steps", "Tensors", "dense", "logits", "run", "step_losses"]

Tensors: TypeAlias = dict[str, Any]


class Steps(NamedTuple):
    """What is given at each step.

    Attributes:
        inputs: (T, N, D).
        mask: (T, N, 1), bool, or None.
        weights: of the crossings, (T, N, 1), or None.
        held: (T, N, S), or None.
    """

    inputs: Any
    mask: Any = None
    weights: Any = None
    held: Any = None

    def turned(self) -> Steps:
        """The last one first."""
        return Steps(*(None if given is None else given[::-1] for given in self))


class PytensorOps:
    """The `gradaudit.recurrent.cells.Ops` of symbolic tensors (K, N, H)."""

    def recurrent(self, weights: Any) -> Any:
        """As it is, (K, H, G H)."""
        return weights

    def vector(self, weights: Any) -> Any:
        """(K, H) as (K, 1, H)."""
        return weights[:, None]

    def product(self, weights: Any, state: Any) -> Any:
        """H @ R, (K, N, G H)."""
        return state @ weights

    def affine(self, source: Any, weights: Any, state: Any) -> Any:
        """Source + h @ R."""
        return source + state @ weights

    def split(self, a: Any, n: int) -> Sequence[Any]:
        """Along the last axis."""
        width = a.shape[-1] // n
        return [a[..., i * width : (i + 1) * width] for i in range(n)]

    def activate(self, a: Any, activation: Activation) -> Any:
        """activation(a)."""
        return _activate(a, activation)

    def units(self, a: Any, some: slice) -> Any:
        """Along the last axis."""
        return a[..., some]

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """As `switch` has it."""
        return pt.switch(condition, a, b)

    def is_zero(self, a: Any) -> Any:
        """Where it is 0; ``==`` compares the variables themselves."""
        return pt.eq(a, 0)


_OPS = PytensorOps()


def dense(weights: Tensors, inputs: Any, activation: Activation) -> Any:
    """activation(x @ W + b), (T, K, N, H), of inputs (T, N, D) with W (K, D, H) and b (K, H)."""
    return _activate(_product(inputs[:, None], weights["W"], weights["b"]), activation)


def run(
    spec: RecurrentSpec,
    weights: Tensors,
    steps: Steps,
    states: Sequence[State],
    *,
    reverse: bool = False,
    truncate_gradient: int = -1,
) -> list[State]:
    """All states by layer and component, (T, K, N, H), each layer a `pytensor.scan`.

    Args:
        spec: the layers.
        weights: with a leading axis K.
        steps: what is given at each step.
        states: before the first step, by layer and component, (K, N, H).
        reverse: the layers of the reverse direction.
        truncate_gradient: as `pytensor.scan` has it: the steps, from the last, that its backward pass visits; -1: all.
    """
    walked: list[State] = []
    below = steps.inputs[:, None]
    for index, (layer, state) in enumerate(zip(spec.layers(reverse=reverse), states, strict=True)):
        sources = _product(below, weights["W" + layer.suffix], weights["b" + layer.suffix])
        walked.append(_walk(spec, layer, index, weights, state, steps, sources, truncate_gradient))
        below = walked[-1][0]
    return walked


def _walk(
    spec: RecurrentSpec,
    layer: Layer,
    index: int,
    weights: Tensors,
    state: State,
    steps: Steps,
    sources: Any,
    truncate_gradient: int,
) -> State:
    own = prepared(spec, layer, _OPS, weights)
    beside = Given(steps.mask, steps.weights, steps.held)
    given = [name for name in Given._fields if getattr(beside, name) is not None]
    n_given, n_state = len(given), len(spec.components)

    def one(source: Any, *rest: Any) -> list[Any]:
        at = dict(zip(given, rest[:n_given], strict=True))
        before, fixed = tuple(rest[n_given : n_given + n_state]), rest[n_given + n_state :]
        n = len(own.recurrent)
        fixed_weights = Weights(tuple(fixed[:n]), tuple(fixed[n:]))
        after = advance(spec, _OPS, fixed_weights, index, before, source, Given(**at))
        # a switch may widen what it was given
        return [c.astype(b.dtype) for c, b in zip(after, before, strict=True)]

    found = pytensor.scan(
        one,
        sequences=[sources, *(getattr(beside, name) for name in given)],
        outputs_info=list(state),
        non_sequences=[*own.recurrent, *own.vectors],
        truncate_gradient=truncate_gradient,
        strict=True,
        mode=LIGHT,
        return_updates=False,
    )
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def logits(spec: RecurrentSpec, weights: Tensors, top: Any, *, reverse: bool) -> Any:
    """Probabilities or logits (T, K, N, C) of the top layer's states; of the reverse direction without the bias."""
    if spec.n_hidden is None:
        return top
    if reverse:
        return top @ weights["V"][:, spec.width :]
    return top @ weights["V"][:, : spec.width] + weights["c"][:, None]


def step_losses(outputs: Any, labels: Any, negative_weights: Any, *, probabilities: bool) -> Any:
    """What each step of each sequence adds to the loss, (T, K, N).

    Of outputs (T, K, N, C), labels and minus the loss weights (T, N).

    A minus in the graph would meet the weights in a product of three, which PyTensor computes entry by entry in Python.
    """
    # a probability of 0 where nothing weighs would be NaN in the gradient: 0 * inf
    scores = outputs if probabilities else pt.special.log_softmax(outputs, axis=-1)
    picked = pt.take_along_axis(scores, labels[:, None, :, None], axis=3)[..., 0]
    counts = pt.neq(negative_weights, 0)[:, None]
    if probabilities:
        picked = pt.log(pt.switch(counts, picked, pt.ones_like(picked)))
    picked = pt.switch(counts, picked, pt.zeros_like(picked))
    return negative_weights[:, None] * picked


def _product(reads: Any, weight: Any, bias: Any) -> Any:
    """X @ W + b, (T, K, N, G H), of (T, 1 or K, N, D)."""
    n_steps, n_sequences, n_features = reads.shape[0], reads.shape[2], weight.shape[1]
    flat = reads.dimshuffle(1, 0, 2, 3).reshape((reads.shape[1], n_steps * n_sequences, n_features))
    product = flat @ weight + bias[:, None]
    return product.reshape((weight.shape[0], n_steps, n_sequences, weight.shape[2])).dimshuffle(1, 0, 2, 3)


def _activate(a: Any, activation: Activation) -> Any:
    if activation == "tanh":
        return pt.tanh(a)
    if activation == "relu":
        # pt.maximum has another subgradient at 0 than the other backends
        return pt.switch(a > 0, a, pt.zeros_like(a))
    if activation == "sigmoid":
        return pt.sigmoid(a)
    if activation == "softmax":
        return pt.special.softmax(a, axis=-1)
    return a
