"""Hooks that change a PyTorch gradient on its way back: cuts of their own kind, listed and removed like the others.

While hooks are watched, the methods by which one is registered on a tensor, and a module is asked for its own at each
call, are wrapped; the wrappers act in their own thread. Hooks of parameters, registered before, ask by `chosen`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from gradaudit.backends.torch import cuts
from gradaudit.backends.torch.backward import gradients
from gradaudit.backends.torch.sites import at_function
from gradaudit.backends.torch.state import Patches, eager, preserved
from gradaudit.sites import Cut

__all__ = ["chosen", "listed", "register", "removed"]

Function: TypeAlias = Callable[[dict[str, Tensor]], Any]
Given: TypeAlias = Callable[[Sequence[Any]], Any]

_KIND = "hook"
_LOCAL = threading.local()

#: Registers a hook on a tensor as it is, also while hooks are watched.
register = Tensor.register_hook


def listed(function: Function, leaves: dict[str, Tensor]) -> tuple[Cut, ...]:
    """The cuts in one run, see `gradaudit.backends.torch.cuts`; then the hooks that change a gradient in another."""
    with preserved(), _hooked(_Watching()) as watching:
        found = cuts.listed(function, _fresh(leaves))
    if not watching.met:
        return found
    with _hooked(_Watching()) as watching:
        own = _fresh(leaves)
        loss = function(dict(own))
        if isinstance(loss, Tensor) and loss.requires_grad:
            gradients(loss, own)
    return (*found, *(replace(cut, executions=n) for cut, n in watching.changed.items()))


def removed(function: Function, chosen: Collection[Cut]) -> Function:
    """The function without these cuts."""
    hooks = frozenset(cut for cut in chosen if cut.kind == _KIND)
    without = cuts.removed(function, [cut for cut in chosen if cut not in hooks])
    if not hooks:
        return without

    def unhooked(parameters: dict[str, Tensor]) -> Any:
        with _hooked(_Leaving(hooks)):
            return without(parameters)

    return unhooked


def chosen(hook: Any, acting: Any = None) -> Any:
    """What is used now in place of a hook that a parameter brings along.

    Args:
        hook: as it is written.
        acting: what runs it on a leaf, and leaves its result in ``.grad``; None: itself.
    """
    hooks = getattr(_LOCAL, "hooks", None)
    if hooks is None:
        return hook if acting is None else acting
    return hooks.written(hook) if acting is None else hooks.written(hook, acting, _left)


def _fresh(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """A leaf keeps the hooks of a run."""
    return {name: p.detach().clone().requires_grad_() for name, p in leaves.items()}


def _handed(args: Sequence[Any]) -> Any:
    """What a hook may change: of (gradient,), (module, outgoing) or (module, incoming, outgoing)."""
    return args[-1] if len(args) < 3 else args[1]


def _left(args: Sequence[Any]) -> Any:
    """What one that runs after ``.grad`` is filled may change, of (leaf,)."""
    return args[0].grad


class _Hooks(cuts.Mode):
    """Decides what is used in place of a hook. Never entered as a mode: only its sense of place is wanted."""

    def instead(self, cut: Cut, hook: Any, given: Given = _handed) -> Any:
        """The hook itself, or another; what it is given to change, of its arguments."""
        raise NotImplementedError

    def of_tensor(self, hook: Any) -> Any:
        """In place of a hook that the loss registers: its place is where it does so."""
        return self.instead(self.site(_KIND, sys._getframe(2)), hook)  # noqa: SLF001

    def written(self, hook: Any, acting: Any = None, given: Given = _handed) -> Any:
        """In place of a hook that was registered before, or of what runs it: its place is where it is written."""
        acting = hook if acting is None else acting
        cut = at_function(_KIND, hook)
        return acting if cut is None else self.instead(cut, acting, given)


class _Watching(_Hooks):
    """Counts how often a hook changed something.

    Attributes:
        met: there are hooks.
        changed: those that changed what they were given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = False
        self.changed: dict[Cut, int] = defaultdict(int)

    def instead(self, cut: Cut, hook: Any, given: Given = _handed) -> Any:
        """The hook, watched."""
        self.met = True

        @functools.wraps(hook, assigned=())
        def watched(*args: Any) -> Any:
            before = [g.detach().clone() for g in _tensors(given(args))]
            result = hook(*args)
            after = _tensors(given(args) if result is None else result)
            if len(before) != len(after) or not all(map(_equal, before, after)):
                self.changed[cut] += 1
            return result

        return watched


class _Leaving(_Hooks):
    """Leaves some hooks out."""

    def __init__(self, chosen: frozenset[Cut]) -> None:
        super().__init__()
        self._chosen = chosen

    def instead(self, cut: Cut, hook: Any, given: Given = _handed) -> Any:  # noqa: ARG002
        """Nothing, which can be registered."""
        return _nothing if cut in self._chosen else hook


def _nothing(*_: Any) -> None:
    """A hook that leaves everything as it is."""


def _tensors(gradients: Any) -> list[Tensor]:
    return [g for g in (gradients if isinstance(gradients, tuple) else (gradients,)) if isinstance(g, Tensor)]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


@contextlib.contextmanager
def _hooked(hooks: Any) -> Iterator[Any]:
    """Every hook that is registered or used meanwhile, in this thread, is one that it has chosen."""
    before = getattr(_LOCAL, "hooks", None)
    _LOCAL.hooks = hooks
    try:
        with _PATCHES.held(), eager():
            yield hooks
    finally:
        _LOCAL.hooks = before


def _install(patches: Patches) -> None:
    patches.put(Tensor, "register_hook", _registering(Tensor.__dict__["register_hook"]))
    for name in ("_get_backward_hooks", "_get_backward_pre_hooks"):
        patches.put(Module, name, _asked(Module.__dict__[name]))


def _registering(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @functools.wraps(original)
    def register(tensor: Any, hook: Any) -> Any:
        hooks = getattr(_LOCAL, "hooks", None)
        return original(tensor, hook if hooks is None else hooks.of_tensor(hook))

    return register


def _asked(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(original)
    def ask(module: Any) -> Any:
        found, hooks = original(module), getattr(_LOCAL, "hooks", None)
        if hooks is None:
            return found
        if isinstance(found, tuple):  # those of this kind, and those of an older one
            return tuple([hooks.written(hook) for hook in kind] for kind in found)
        return [hooks.written(hook) for hook in found]

    return ask


_PATCHES = Patches(_install)
