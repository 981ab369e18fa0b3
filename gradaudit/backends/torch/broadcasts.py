"""Where a PyTorch loss is taken over pairs: see `gradaudit.backends.broadcasts`.

A mode below autograd sees every operator that runs, those inside `torch.nn.functional` too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gradaudit.backends.broadcasts import Following, Kind, Value, may_pair
from gradaudit.backends.torch.sites import SKIPPED
from gradaudit.backends.torch.state import DispatchMode, eager
from gradaudit.sites import Broadcast

__all__ = ["over_pairs"]

_PAIRING = {"sub", "rsub", "mul", "div"}
_ADDING = {"sum", "mean"}
_TAKING = {"slice", "select", "split", "split_with_sizes", "index", "index_select", "unbind"}
_SHAPING = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "t", "transpose", "permute"),
    *("expand", "detach", "alias", "clone", "_to_copy", "lift_fresh"),
}


def over_pairs(loss: Callable[[], Any], parameters: Sequence[Tensor]) -> list[Broadcast]:
    """The accidental broadcasts in one run of a loss.

    Args:
        loss: of the parameters.
        parameters: themselves, the tensors that the loss takes.
    """
    watching = _Watching(parameters)
    with eager(), watching:
        loss()
    return list(watching.following.found)


@final
class _Watching(DispatchMode):
    """Tells of each operator."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self._keys: Any = WeakTensorKeyDictionary()
        self._count = 0
        self.following = Following([self._value(p).key for p in parameters])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        kind, inputs = _kind(func, name), [self._value(x) for x in _tensors((args, kwargs))]
        if _keeps(func, args, kwargs):
            kind = "keeping"
        site = _site(name, inputs) if may_pair(kind, inputs) else None
        for x in _tensors(result) if inputs else ():
            self.following.note(kind, inputs, self._value(x), site)
        return result

    def _value(self, x: Tensor) -> Value:
        key = self._keys.get(x)
        if key is None:
            key = self._keys[x] = self._count = self._count + 1
        return Value(key, tuple(x.shape))


@cache
def _keepdim(func: Any) -> int | None:
    """At which position an operator takes it."""
    names = [argument.name for argument in func._schema.arguments]  # noqa: SLF001  # there is no other
    return names.index("keepdim") if "keepdim" in names else None


def _keeps(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    position = _keepdim(func)
    return position is not None and bool(args[position] if len(args) > position else kwargs.get("keepdim"))


@cache
def _kind(func: Any, name: str) -> Kind:
    if name in _PAIRING:
        return "pairing"
    if name in _ADDING:
        return "adding"
    if name in _SHAPING:
        return "shaping"
    if name in _TAKING:
        return "taking"
    return "elementwise" if torch.Tag.pointwise in func.tags else "other"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _site(operation: str, inputs: Sequence[Value]) -> Broadcast | None:
    frame = sys._getframe(1)  # noqa: SLF001
    while frame.f_code.co_filename.startswith(SKIPPED):
        if frame.f_back is None:
            return None
        frame = frame.f_back
    code = frame.f_code
    if not {"site-packages", "dist-packages"}.isdisjoint(Path(code.co_filename).parts):
        return None
    return Broadcast(
        operation=operation,
        shapes=tuple(x.shape for x in inputs),
        path=code.co_filename,
        line=frame.f_lineno,
        function=code.co_name,
    )
