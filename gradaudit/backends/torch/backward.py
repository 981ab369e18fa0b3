"""One backward pass by autograd, to the leaves that record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gradaudit.errors import ModelContractError

__all__ = ["gradients", "nodes"]


def gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """The gradients of the leaves; None where the loss does not depend on one, or where it froze one itself.

    Raises:
        ModelContractError: reentrant activation checkpoints, which fill ``.grad`` only, also that of other tensors.
    """
    recording = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not (loss.requires_grad and recording):
        return dict.fromkeys(leaves)
    reentrant = "the loss uses reentrant activation checkpoints, which tell a gradient to .grad only"
    hint = "checkpoint(..., use_reentrant=False)"
    try:
        found = torch.autograd.grad(loss, list(recording.values()), allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ModelContractError(reentrant, where="value_and_grad()", hint=hint) from error
    if any(g is None for g in found) and _is_reentrant(loss):
        raise ModelContractError(reentrant, where="value_and_grad()", hint=hint)
    left = {n: _after(recording[n], g) for n, g in reversed(list(zip(recording, found, strict=True)))}
    return dict.fromkeys(leaves) | left


def _after(leaf: Tensor, gradient: Tensor | None) -> Tensor | None:
    """What the leaf's hooks leave in ``.grad``: `torch.autograd.grad` fills none, and so runs none of these."""
    hooks = leaf._post_accumulate_grad_hooks  # noqa: SLF001  # there is no other way
    if gradient is None or not hooks:
        return gradient
    leaf.grad = gradient.detach().clone()
    for hook in hooks.values():
        hook(leaf)
    gradient, leaf.grad = leaf.grad, None
    return gradient


def nodes(result: Tensor) -> Iterator[Any]:
    """The nodes of the graph behind a result."""
    seen, left = set(), [result.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [inner for inner, _ in node.next_functions]


def _is_reentrant(loss: Tensor) -> bool:
    """Whether a reentrant checkpoint is in the graph."""
    return any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes(loss))
