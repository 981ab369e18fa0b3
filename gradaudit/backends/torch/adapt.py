"""What PyTorch users have: a module and a loss of it, or a function of tensors in containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradaudit.backends.containers import flattened
from gradaudit.backends.keras import keras_function, keras_of
from gradaudit.backends.torch.model import TorchModel
from gradaudit.errors import ModelContractError
from gradaudit.protocols import Model

__all__ = ["adapted"]


def adapted(target: Any, at: Any, *, loss: Callable[..., Any] | None) -> Model | None:
    """A module or Keras model with a loss, or a function of the tensors that ``at`` holds; None: neither.

    Raises:
        ModelContractError: a module without a loss, or without a parameter that is trained.
    """
    keras = keras_of(target, "torch")
    if keras is not None and at is None:
        of_paths, variables = keras_function(keras, target, loss)
        values = {path: variable.value.detach() for path, variable in variables.items()}
        return TorchModel(_widening(of_paths, values), values)
    if isinstance(target, nn.Module) and at is None:
        return _of_module(target, loss)
    found = flattened(at, _is_trained) if callable(target) and loss is None else None
    if found is None:
        return None
    leaves, rebuilt = found
    return TorchModel(_widening(lambda p: target(rebuilt(p)), leaves), leaves)


def _of_module(module: nn.Module, loss: Callable[..., Any] | None) -> TorchModel:
    name = type(module).__name__
    if loss is None:
        msg = f"a {name} alone has no loss"
        hint = "audit(net, loss=lambda net: torch.nn.functional.mse_loss(net(x), y))"
        raise ModelContractError(msg, where="audit()", hint=hint)
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        msg = f"no parameter of the {name} requires a gradient"
        raise ModelContractError(msg, where="audit()", hint="net.requires_grad_(True)")
    inside = _Loss(module, loss)

    def function(p: Mapping[str, Tensor]) -> Any:
        like = next(iter(p.values()))
        # statistics and other state start anew at every evaluation: copies take what is written to them
        state = {f"module.{n}": _as(like, b.clone()) for n, b in module.named_buffers()}
        frozen = {f"module.{n}": _as(like, w.detach()) for n, w in module.named_parameters() if n not in p}
        given = {f"module.{n}": w for n, w in p.items()}
        with _widening_inputs(module if like.dtype == torch.float64 else None):
            return torch.func.functional_call(inside, {**state, **frozen, **given}, ())

    return TorchModel(_widening(function, parameters), parameters)


class _Loss(nn.Module):  # type: ignore[misc]
    """A loss of a module, as a module around it: `torch.func.functional_call` exchanges the parameters inside."""

    def __init__(self, module: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self) -> Any:
        """The loss."""
        return self._loss(self.module)


def _is_trained(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _as(like: Tensor, x: Tensor) -> Tensor:
    return x.to(like.dtype) if x.is_floating_point() and like.dtype == torch.float64 else x


def _widening(
    function: Callable[[dict[str, Tensor]], Any], parameters: Mapping[str, Tensor]
) -> Callable[[dict[str, Tensor]], Any]:
    """The function, in which float32 tensors that meet float64 parameters are widened: so that it has a twin.

    Data and constants that the function brings along are float32 numbers all the same. Where no parameter is float64
    of its own, a cast to float32 is one to the widest dtype that there is, and becomes one to float64.
    """
    casts = not any(x.dtype == torch.float64 for x in parameters.values())

    def widened(p: dict[str, Tensor]) -> Any:
        if not any(x.dtype == torch.float64 for x in p.values()):
            return function(p)
        with _Widening(casts=casts):
            return function(p)

    return widened


@contextmanager
def _widening_inputs(module: nn.Module | None) -> Iterator[None]:
    """Recurrent layers refuse another dtype than their weights' before any operator is called."""

    def wide(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return _wide(args), _wide(kwargs)

    with ExitStack() as hooks:
        for layer in [] if module is None else module.modules():
            if isinstance(layer, nn.RNNBase):
                hooks.callback(layer.register_forward_pre_hook(wide, prepend=True, with_kwargs=True).remove)
        yield


class _Widening(TorchFunctionMode):  # type: ignore[misc]
    """Makes float32 arguments float64 where others are: PyTorch mixes no dtypes in a product."""

    def __init__(self, *, casts: bool) -> None:
        super().__init__()
        self._casts = casts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtypes = {x.dtype for x in _tensors((args, kwargs))}
        if torch.float64 in dtypes:
            if self._casts and func is Tensor.float:
                return args[0]
            if self._casts or torch.float32 in dtypes:
                args, kwargs = _wide(args, casts=self._casts), _wide(kwargs, casts=self._casts)
        return func(*args, **kwargs)


def _tensors(value: Any) -> Sequence[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list, dict)):
        items = value.values() if isinstance(value, dict) else value
        return [x for item in items for x in _tensors(item)]
    return []


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
