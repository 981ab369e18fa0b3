"""Hooks of the user's own parameters, carried over to the leaves that stand for these in an audit.

Autograd gives a hooked gradient to whoever calls backward; that of a bare copy would be another one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradaudit.backends.torch.hooks import chosen, register
from gradaudit.backends.torch.state import optimisers_met

__all__ = ["carrying"]

Function: TypeAlias = Callable[[dict[str, Tensor]], Any]


def carrying(function: Function, owners: Mapping[str, Any]) -> Function:
    """The function, on whose leaves are the hooks of the tensors that they stand for.

    A hook gets the leaf's gradient. One that runs after ``.grad`` is filled gets the owner itself, which has the leaf's
    numbers and gradient meanwhile; what an optimiser would be given by the hook is what the hook leaves, and the
    optimiser finds nothing to update.
    """
    hooked = {n: x for n, x in owners.items() if isinstance(x, Tensor) and (_on(x) or _on(x, after=True))}
    if not hooked:
        return function
    leaves = [x for x in owners.values() if isinstance(x, Tensor) and x.is_leaf]

    def with_hooks(parameters: dict[str, Tensor]) -> Any:
        for name, owner in hooked.items():
            leaf = parameters[name]
            if leaf.requires_grad and leaf.is_leaf:  # not where only the loss is asked for
                for hook in _on(owner):
                    register(leaf, chosen(hook))
                for hook in _on(owner, after=True):
                    acting = partial(_as_owner, hook, owner, leaves)
                    leaf.register_post_accumulate_grad_hook(chosen(hook, acting))
        return function(parameters)

    return with_hooks


def _on(x: Tensor, *, after: bool = False) -> Collection[Any]:
    found = x._post_accumulate_grad_hooks if after else x._backward_hooks  # noqa: SLF001  # there is no other way
    return (found or {}).values()


def _as_owner(hook: Callable[[Tensor], None], owner: Tensor, leaves: Collection[Tensor], leaf: Tensor) -> None:
    given: list[Tensor] = []
    with _in_place_of(owner, leaf, leaves), _updating_nothing(owner, given), torch.no_grad():
        hook(owner)
        leaf.grad = given[0] if given else owner.grad


@contextmanager
def _in_place_of(owner: Tensor, leaf: Tensor, leaves: Collection[Tensor]) -> Iterator[None]:
    """Meanwhile the owner has what its leaf has, and nobody else has a gradient; then all have their own."""
    before = owner.data, [(x, x.grad) for x in leaves]
    try:
        for x in leaves:  # first: a gradient has the dtype of its tensor at any time
            x.grad = None
        owner.data, owner.grad = leaf.detach(), leaf.grad
        yield
    finally:
        owner.grad = None
        owner.data, gradients = before
        for x, gradient in gradients:
            x.grad = gradient


def _updating_nothing(owner: Tensor, given: list[Tensor]) -> AbstractContextManager[None]:
    """An optimiser that steps meanwhile finds no gradient; that of the owner is put into ``given``."""

    def met(optimiser: Any, *_: Any) -> list[Tensor]:
        held = [x for group in optimiser.param_groups for x in group["params"]]
        given.extend(x.grad.clone() for x in held if x is owner and x.grad is not None)
        return held

    return optimisers_met(met)
