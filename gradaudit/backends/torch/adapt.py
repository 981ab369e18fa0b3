"""What PyTorch users have: a module and a loss of it, or a function of tensors in containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradaudit.backends.containers import flattened
from gradaudit.backends.keras import keras_function, keras_of
from gradaudit.backends.torch.model import TorchModel
from gradaudit.backends.torch.widening import widening, widening_inputs
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
        return TorchModel(widening(of_paths, values), values)
    if isinstance(target, nn.Module) and at is None:
        return _of_module(target, loss)
    found = flattened(at, _is_trained) if callable(target) and loss is None else None
    if found is None:
        return None
    leaves, rebuilt = found
    return TorchModel(widening(lambda p: target(rebuilt(p)), leaves), leaves)


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
    names = {id(p): n for n, p in parameters.items()}
    places = [(where, names[id(p)]) for where, p in _placed(inside, "_parameters") if id(p) in names]

    def function(p: Mapping[str, Tensor]) -> Any:
        like = next(iter(p.values()))
        # statistics and other state start anew at every evaluation: copies take what is written to them
        copies = {id(b): _as(like, b.clone()) for _, b in _placed(inside, "_buffers")}
        state = {where: copies[id(b)] for where, b in _placed(inside, "_buffers")}
        frozen = {where: _as(like, w.detach()) for where, w in _placed(inside, "_parameters") if id(w) not in names}
        given = {where: p[name] for where, name in places}
        with widening_inputs(module if like.dtype == torch.float64 else None):
            # not `tie_weights`: of a module that is there twice, PyTorch then puts back what it was given
            return torch.func.functional_call(inside, {**state, **frozen, **given}, (), tie_weights=False)

    return TorchModel(widening(function, parameters), parameters)


class _Loss(nn.Module):  # type: ignore[misc]
    """A loss of a module, as a module around it: `torch.func.functional_call` exchanges the parameters inside."""

    def __init__(self, module: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self) -> Any:
        """The loss."""
        return self._loss(self.module)


def _placed(module: nn.Module, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Where each parameter or buffer stands, and itself: tied ones in several modules, a module but once."""
    for prefix, owner in module.named_modules():
        for name, x in getattr(owner, kind).items():
            if x is not None:
                yield f"{prefix}.{name}", x


def _is_trained(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _as(like: Tensor, x: Tensor) -> Tensor:
    return x.to(like.dtype) if x.is_floating_point() and like.dtype == torch.float64 else x
