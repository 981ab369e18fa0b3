"""What PyTorch users have: a module and a loss of it, or a function of tensors in containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradaudit.backends.containers import flattened
from gradaudit.backends.keras import keras_function, keras_of
from gradaudit.backends.torch.contents import Contents
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

    def function(p: Mapping[str, Tensor]) -> Any:
        like = next(iter(p.values()))
        # statistics and other state start anew at every evaluation: copies take what is written to them
        standing = {id(x): (x, p[n]) for n, x in parameters.items()}

        def instead(x: Tensor) -> Tensor:
            if id(x) not in standing:
                standing[id(x)] = x, _copied(like, x)
            return standing[id(x)][1]

        contents = Contents(module)
        try:
            contents.exchange(instead)
            registered = {where: instead(x) for where, x in _registered(inside)}
            with widening_inputs(module if like.dtype == torch.float64 else None):
                # not `tie_weights`: of a module that is there twice, PyTorch then puts back what it was given
                return torch.func.functional_call(inside, registered, (), tie_weights=False)
        finally:
            contents.restore()

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


def _registered(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Where each parameter and buffer stands, and itself: tied ones in several modules, a module but once."""
    for prefix, owner in module.named_modules():
        for name, x in (*owner._parameters.items(), *owner._buffers.items()):  # noqa: SLF001  # elsewhere a tied one is there once
            if x is not None:
                yield f"{prefix}.{name}", x


def _is_trained(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _copied(like: Tensor, x: Tensor) -> Tensor:
    """What the loss may write into, in the precision of its parameters where that is float64."""
    wide = x.is_floating_point() and like.dtype == torch.float64
    copy = x.detach().to(like.dtype if wide else x.dtype, copy=True)
    # never registered, but differentiated by inside the loss; a frozen one is False, which vmap would refuse to be told
    return copy.requires_grad_() if x.is_leaf and x.requires_grad else copy
