"""The dense and the recurrent layers as pure functions of tensors; PyTorch differentiates them.

Layout: time first, then K parameter copies, units, sequences, (T, K, H, N). With sequences innermost, the softmax over
few classes is vectorised. Time is walked in blocks, so memory does not grow with T where only the losses are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradaudit.recurrent import Activation, RecurrentSpec
from gradaudit.recurrent.cells import Given, State, advance, prepared
from gradaudit.recurrent.spec import Layer

__all__ = ["BLOCK", "Steps", "Tensors", "activate", "cross_entropy", "dense", "run"]

Tensors: TypeAlias = Mapping[str, Tensor]

#: Steps whose input products x @ W are formed at once: large enough to amortise, small enough to stay in cache.
BLOCK = 256


class Steps(NamedTuple):
    """What is given at each step.

    Attributes:
        inputs: (T, N, D).
        mask: (T, 1, N), or None.
        weights: of the crossings, (T, 1, N), or None.
        held: (T, S, N), or None.
    """

    inputs: Tensor
    mask: Tensor | None = None
    weights: Tensor | None = None
    held: Tensor | None = None

    def part(self, steps: slice) -> Steps:
        """Some of the steps."""
        return self.each(lambda a: a[steps])

    def each(self, change: Callable[[Tensor], Tensor]) -> Steps:
        """All that is there, changed."""
        return Steps(*(None if a is None else change(a) for a in self))

    def at(self, t: int) -> Given:
        """All but the inputs at one step."""
        return Given(*(None if a is None else a[t] for a in self[1:]))


def activate(a: Tensor, activation: Activation) -> Tensor:
    """The outputs h = activation(a); softmax over the units, axis -2."""
    if activation == "tanh":
        return torch.tanh(a)
    if activation == "relu":
        return torch.relu(a)
    if activation == "sigmoid":
        return torch.sigmoid(a)
    if activation == "softmax":
        return torch.softmax(a, dim=-2)
    return a


class TorchOps:
    """The `gradaudit.recurrent.cells.Ops` of tensors (K, H, N)."""

    def recurrent(self, weights: Tensor) -> Tensor:
        """R (K, H, G H) as (K, G H, H)."""
        return weights.mT

    def vector(self, weights: Tensor) -> Tensor:
        """(K, H) as (K, H, 1)."""
        return weights[..., None]

    def product(self, weights: Tensor, state: Tensor) -> Tensor:
        """(K, G H, N)."""
        return weights @ state

    def affine(self, source: Tensor, weights: Tensor, state: Tensor) -> Tensor:
        """(K, G H, N)."""
        return torch.baddbmm(source, weights, state)

    def split(self, a: Tensor, n: int) -> Sequence[Tensor]:
        """Views."""
        parts: Sequence[Tensor] = a.chunk(n, dim=-2)
        return parts

    def activate(self, a: Tensor, activation: Activation) -> Tensor:
        """activation(a)."""
        return activate(a, activation)

    def units(self, a: Tensor, some: slice) -> Tensor:
        """Along axis -2."""
        return a[..., some, :]

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """As PyTorch has it."""
        return torch.where(condition, a, b)

    def is_zero(self, a: Tensor) -> Tensor:
        """Where it is 0."""
        return a == 0


_OPS = TorchOps()


def dense(parameters: Tensors, inputs: Tensor, activation: Activation) -> Iterator[tuple[slice, Tensor]]:
    """activation(x @ W + b) of inputs (T, N, D) with parameters (K, ...): (B, K, H, N) by blocks of steps."""
    for steps in _blocks(len(inputs)):
        yield steps, activate(_input_product(parameters["W"], parameters["b"], inputs[steps]), activation)


def run(
    spec: RecurrentSpec, parameters: Tensors, steps: Steps, states: list[State], *, reverse: bool = False
) -> Iterator[tuple[slice, list[list[State]]]]:
    """All states of consecutive blocks of steps, [layer][step] of components (K, H, N), from ``states`` before."""
    for part in _blocks(len(steps.inputs)):
        some, below, kept = steps.part(part), None, []
        for index, layer in enumerate(spec.layers(reverse=reverse)):
            walked = _walk(spec, layer, index, parameters, some, below, states[index])
            states[index] = walked[-1]
            if index + 1 < spec.n_layers:
                below = torch.stack([state[0] for state in walked])
            kept.append(walked)
        yield part, kept


def _walk(
    spec: RecurrentSpec, layer: Layer, index: int, parameters: Tensors, steps: Steps, below: Tensor | None, state: State
) -> list[State]:
    """One layer's states in one block of steps."""
    # every block has its own view of R: autograd sums the uses in it, then the views; one long sum would lose digits
    weights = prepared(spec, layer, _OPS, parameters)
    weight, bias = parameters["W" + layer.suffix], parameters["b" + layer.suffix]
    sources = _input_product(weight, bias, steps.inputs) if below is None else weight.mT @ below + bias[:, :, None]
    walked = []
    # unbind, because the backward pass of sources[t] fills a tensor of the size of sources for every t
    for t, source in enumerate(sources.unbind(0)):
        state = advance(spec, _OPS, weights, index, state, source, steps.at(t))
        walked.append(state)
    return walked


def _blocks(n_steps: int) -> Iterator[slice]:
    for start in range(0, n_steps, BLOCK):
        yield slice(start, min(start + BLOCK, n_steps))


def _input_product(weight: Tensor, bias: Tensor, inputs: Tensor) -> Tensor:
    (n_copies, n_features, n_units), (n_steps, n_sequences, _) = weight.shape, inputs.shape
    flat = weight.mT.reshape(-1, n_features) @ inputs.reshape(-1, n_features).T
    product = flat.reshape(n_copies, n_units, n_steps, n_sequences) + bias[:, :, None, None]
    return product.permute(2, 0, 1, 3)


def cross_entropy(outputs: Tensor, labels: Tensor, *, probabilities: bool) -> Tensor:
    """Cross-entropies, (T, K, N), of probabilities or logits (T, K, C, N) with labels (T, N)."""
    index = labels[:, None, None, :].expand(-1, outputs.shape[1], -1, -1)
    picked = outputs.gather(2, index)[:, :, 0]
    return -picked.log() if probabilities else outputs.logsumexp(dim=2) - picked
