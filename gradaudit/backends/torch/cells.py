"""The dense and the recurrent layer as pure functions of tensors; PyTorch differentiates them.

Layout: time first, then K parameter copies, classes, sequences, (T, K, H, N). With sequences innermost, the softmax
over few classes is vectorised. Time is walked in blocks, so memory does not grow with T where only the losses are
wanted; the blocks do not depend on the truncation, so it does not change a bit of the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from gradaudit.recurrent import Activation

__all__ = ["BLOCK", "Tensors", "activate", "cross_entropy", "dense", "run"]

Tensors: TypeAlias = Mapping[str, Tensor]

#: Steps whose input products x @ W are formed at once: large enough to amortise, small enough to stay in cache.
BLOCK = 256


def activate(a: Tensor, activation: Activation) -> Tensor:
    """The outputs h = activation(a); softmax over the classes, axis -2."""
    if activation == "tanh":
        return torch.tanh(a)
    if activation == "relu":
        return torch.relu(a)
    if activation == "sigmoid":
        return torch.sigmoid(a)
    if activation == "softmax":
        return torch.softmax(a, dim=-2)
    return a


def dense(parameters: Tensors, inputs: Tensor, activation: Activation) -> Iterator[tuple[slice, Tensor]]:
    """activation(x @ W + b) of inputs (T, N, D) with parameters (K, ...): (B, K, H, N) by blocks of steps."""
    for steps in _blocks(len(inputs)):
        yield steps, activate(_input_product(parameters, inputs[steps]), activation)


def run(
    parameters: Tensors, inputs: Tensor, state: Tensor, activation: Activation, n_cut: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """The hidden states (B, K, H, N) of consecutive blocks of steps, from state (K, H, N) before the first.

    The first ``n_cut`` steps are computed without a tape: neither their outputs nor the state after them is
    differentiated, backward or forward.
    """
    for steps in _blocks(len(inputs)):
        n_untaped = min(max(n_cut - steps.start, 0), steps.stop - steps.start)
        states = _states(parameters, inputs[steps], state, activation, n_untaped)
        state = states[-1]
        yield steps, states


def _states(parameters: Tensors, inputs: Tensor, state: Tensor, activation: Activation, n_untaped: int) -> Tensor:
    # every block has its own view of R: autograd sums the uses in it, then the views; one long sum would lose digits
    recurrent = parameters["R"].mT
    products = _input_product(parameters, inputs)
    untaped: list[Tensor] = []
    if n_untaped:
        with torch.no_grad():
            # detached as well, because forward mode heeds detach, not no_grad
            untaped = _walk(recurrent.detach(), products[:n_untaped].detach(), state.detach(), activation)
        state = untaped[-1]
    return torch.stack(untaped + _walk(recurrent, products[n_untaped:], state, activation))


def _walk(recurrent: Tensor, products: Tensor, state: Tensor, activation: Activation) -> list[Tensor]:
    states = []
    # unbind, because the backward pass of products[t] fills a tensor of the size of products for every t
    for product in products.unbind(0):
        state = activate(torch.baddbmm(product, recurrent, state), activation)
        states.append(state)
    return states


def _blocks(n_steps: int) -> Iterator[slice]:
    for start in range(0, n_steps, BLOCK):
        yield slice(start, min(start + BLOCK, n_steps))


def _input_product(parameters: Tensors, inputs: Tensor) -> Tensor:
    weight, bias = parameters["W"], parameters["b"]
    (n_copies, n_features, n_hidden), (n_steps, n_sequences, _) = weight.shape, inputs.shape
    flat = weight.mT.reshape(-1, n_features) @ inputs.reshape(-1, n_features).T
    product = flat.reshape(n_copies, n_hidden, n_steps, n_sequences) + bias[:, :, None, None]
    return product.permute(2, 0, 1, 3)


def cross_entropy(outputs: Tensor, labels: Tensor, activation: Activation) -> Tensor:
    """Cross-entropies summed over sequences, (T, K), of outputs (T, K, H, N) with labels (T, N)."""
    index = labels[:, None, None, :].expand(-1, outputs.shape[1], -1, -1)
    picked = outputs.gather(2, index)[:, :, 0]
    if activation == "softmax":
        return -picked.log().sum(dim=-1)
    return (outputs.logsumexp(dim=2) - picked).sum(dim=-1)
