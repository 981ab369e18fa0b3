"""The dense and the recurrent layer as PyTensor graphs; the recurrent one is PyTensor's own `scan`.

Layout: time first, then K parameter copies, sequences, classes, (T, K, N, H).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import pytensor
from pytensor import tensor as pt

from gradaudit.backends.pytensor.modes import LIGHT
from gradaudit.recurrent import Activation

__all__ = ["Tensors", "dense", "run", "step_losses"]

Tensors: TypeAlias = dict[str, Any]


def dense(weights: Tensors, inputs: Any, activation: Activation) -> Any:
    """activation(x @ W + b), (T, K, N, H), of inputs (T, N, D) with W (K, D, H) and b (K, H)."""
    return _activate(_input_product(weights, inputs), activation)


def run(weights: Tensors, inputs: Any, state: Any, activation: Activation, *, truncate_gradient: int) -> Any:
    """The hidden states (T, K, N, H) of the Elman layer from state (K, N, H), by `pytensor.scan`.

    Args:
        weights: W (K, D, H), R (K, H, H), b (K, H).
        inputs: (T, N, D).
        state: before the first step.
        activation: of the layer.
        truncate_gradient: as `pytensor.scan` has it: the steps, from the last, that its backward pass visits; -1: all.
    """
    return pytensor.scan(
        lambda source, state, recurrent: _activate(source + state @ recurrent, activation),
        sequences=[_input_product(weights, inputs)],
        outputs_info=[state],
        non_sequences=[weights["R"]],
        truncate_gradient=truncate_gradient,
        strict=True,
        mode=LIGHT,
        return_updates=False,
    )


def step_losses(outputs: Any, labels: Any, loss_weights: Any, activation: Activation) -> Any:
    """What each step adds to the loss, (K, T), of outputs (T, K, N, H), labels (T, N) and loss weights (T,)."""
    # a probability of 0 at a step without a loss would be NaN in the gradient, where its weight makes 0 * inf
    scores = outputs if activation == "softmax" else pt.special.log_softmax(outputs, axis=-1)
    picked = pt.take_along_axis(scores, labels[:, None, :, None], axis=3)[..., 0]
    counts = pt.neq(loss_weights, 0)[:, None, None]
    if activation == "softmax":
        picked = pt.log(pt.switch(counts, picked, pt.ones_like(picked)))
    entropies = -pt.switch(counts, picked, pt.zeros_like(picked)).sum(axis=2)
    return (loss_weights[:, None] * entropies).T


def _input_product(weights: Tensors, inputs: Any) -> Any:
    n_steps, n_sequences, n_features = inputs.shape
    product = inputs.reshape((1, n_steps * n_sequences, n_features)) @ weights["W"] + weights["b"][:, None]
    n_copies, n_hidden = weights["b"].shape
    return product.reshape((n_copies, n_steps, n_sequences, n_hidden)).dimshuffle(1, 0, 2, 3)


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
