"""Float32 tensors that meet float64 parameters, widened: so that a float32 function has a float64 twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["widening", "widening_inputs"]


def widening(function: Callable[[dict[str, Tensor]], Any]) -> Callable[[dict[str, Tensor]], Any]:
    """The function, in which float32 tensors that meet float64 parameters are widened: so that it has a twin.

    Data and constants that the function brings along are float32 numbers all the same.
    """

    def widened(p: dict[str, Tensor]) -> Any:
        if not any(x.dtype == torch.float64 for x in p.values()):
            return function(p)
        with _Widening():
            return function(p)

    return widened


@contextmanager
def widening_inputs(module: nn.Module | None) -> Iterator[None]:
    """Widen what recurrent layers of a module are given: they refuse other dtypes before any operator is called."""

    def wide(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return _wide(args), _wide(kwargs)

    with ExitStack() as hooks:
        for layer in [] if module is None else module.modules():
            if isinstance(layer, nn.RNNBase):
                hooks.callback(layer.register_forward_pre_hook(wide, prepend=True, with_kwargs=True).remove)
        yield


class _Widening(TorchFunctionMode):  # type: ignore[misc]
    """Makes float32 arguments float64 where others are: PyTorch mixes no dtypes in a product."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        if any(x.dtype == torch.float64 for x in tensors) and any(x.dtype == torch.float32 for x in tensors):
            args, kwargs = _wide(args), _wide(kwargs)
        return func(*args, **kwargs)


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return [x for item in items for x in _tensors(item)]
    return []


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    if isinstance(value, dict):
        return {key: _wide(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_wide(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
