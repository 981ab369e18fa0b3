"""Float32 tensors that meet float64 parameters, widened: so that a float32 function has a float64 twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradaudit.backends.torch.state import DispatchMode
from gradaudit.backends.torch.storages import identity, storage

__all__ = ["widened_calls", "widening", "widening_inputs"]


def widening(
    function: Callable[[dict[str, Tensor]], Any], parameters: Mapping[str, Tensor]
) -> Callable[[dict[str, Tensor]], Any]:
    """The function, in which float32 tensors that meet float64 parameters are widened: so that it has a twin.

    Data and constants that the function brings along are float32 numbers all the same. Where no parameter is float64
    of its own, a cast to float32 is one to the widest dtype that there is, and becomes one to float64. Random numbers
    are those that float32 tensors draw: of float64 the same generator makes others.
    """
    watched = [True]  # until it turns out that it draws none: to watch every operator takes time
    casts = not any(x.dtype == torch.float64 for x in parameters.values())

    def widened(p: dict[str, Tensor]) -> Any:
        if not any(x.dtype == torch.float64 for x in p.values()):
            return function(p)
        with _Widening(casts=casts), _Draws() if watched else nullcontext() as draws:
            value = function(p)
        if draws is not None and not draws.met:
            watched.clear()
        return value

    return widened


@contextmanager
def widened_calls(*, casts: bool) -> Iterator[None]:
    """Meanwhile float32 tensors that meet float64 ones are widened, and random numbers are those of float32 tensors.

    Args:
        casts: so are casts to float32, see `widening`.
    """
    with _Widening(casts=casts), _Draws():
        yield


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


#: They write into their first argument, by name. Widened, a copy would be written, and the function would miss it.
_WRITING = {"__set__", "__setitem__", "copy_"}


class _Widening(TorchFunctionMode):  # type: ignore[misc]
    """Makes float32 arguments float64 where others are: PyTorch mixes no dtypes in a product.

    What is written into a float32 tensor is rounded there. A function that reads it again has no twin.
    """

    def __init__(self, *, casts: bool) -> None:
        super().__init__()
        self._casts = casts
        self._written: dict[int, Any] = {}  # storages, kept alive so that their identities stay their own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        writing = getattr(func, "__name__", "") in _WRITING and isinstance(args[0], Tensor)
        if self._written and any(identity(x) in self._written for x in tensors[writing:]):
            msg = "what a float64 function has written into a float32 tensor is read"
            raise RuntimeError(msg)
        dtypes = {x.dtype for x in tensors}
        if torch.float64 in dtypes:
            if self._casts and func is Tensor.float:
                return args[0]
            if writing and args[0].dtype == torch.float32:
                # `x.data = y` would change the dtype of x, for good; the others round by themselves
                func(args[0], *(_like(args[0], x) for x in args[1:]), **kwargs)
                self._written[identity(args[0])] = storage(args[0])
                return args[0]
            if self._casts or torch.float32 in dtypes:
                args, kwargs = _wide(args, casts=self._casts), _wide(kwargs, casts=self._casts)
        return func(*args, **kwargs)


#: What draws random numbers, by its name in ATen.
_DRAWN = {"bernoulli", "normal", "rand", "rand_like", "randn", "randn_like"} | {
    f"{name}_" for name in ("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal", "uniform")
}


class _Draws(DispatchMode):
    """Draws for float64 tensors what is drawn for float32 ones; notes whether it met any."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name == "native_dropout" and args[0].dtype == torch.float64:
            self.met = True
            factors, kept = func(torch.ones_like(args[0], dtype=torch.float32), *args[1:], **kwargs)
            return args[0] * factors, kept
        if name not in _DRAWN or torch.float64 not in {kwargs.get("dtype"), *(x.dtype for x in _tensors(args))}:
            return func(*args, **kwargs)
        self.met = True
        single = [x.float() if isinstance(x, Tensor) and x.dtype == torch.float64 else x for x in args]
        options = {key: torch.float32 if x is torch.float64 else x for key, x in kwargs.items()}
        drawn = func(*single, **options).double()
        return args[0].copy_(drawn) if name.endswith("_") else drawn


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return [x for item in items for x in _tensors(item)]
    return []


def _like(x: Tensor, value: Any) -> Any:
    return value.to(x.dtype) if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _wide(value: Any, *, casts: bool = False) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    if casts and value is torch.float32:
        return torch.float64
    if isinstance(value, dict):
        return {key: _wide(item, casts=casts) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_wide(item, casts=casts) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
