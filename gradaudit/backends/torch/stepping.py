"""A module and its optimisers around a run of a training step: what the step changes is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from gradaudit.arrays import NamedArrays
from gradaudit.backends.torch.contents import Contents, Values
from gradaudit.backends.torch.model import as_tensor
from gradaudit.backends.torch.state import preserved
from gradaudit.backends.torch.widening import widened_calls, widening_inputs

__all__ = ["OptimiserState", "ScalerState", "standing"]


@final
class OptimiserState:
    """An optimiser's state, to be put back into the same tensors."""

    def __init__(self, optimiser: Any) -> None:
        self._optimiser = optimiser
        self._groups = [dict(group) for group in optimiser.param_groups]
        self._state = {
            p: (s, {k: (v, v.clone() if isinstance(v, Tensor) else v) for k, v in s.items()})
            for p, s in optimiser.state.items()
        }
        self._params = [(p, p.detach().clone()) for group in self._groups for p in group["params"]]

    def restore(self) -> None:
        """As before; parameters of other modules too."""
        with torch.no_grad():
            for p, value in self._params:
                p.copy_(value)
            self._optimiser.state.clear()
            for p, (state, items) in self._state.items():
                state.clear()
                for key, (tensor, value) in items.items():
                    state[key] = tensor.copy_(value) if isinstance(tensor, Tensor) else value
                self._optimiser.state[p] = state
        for group, before in zip(self._optimiser.param_groups, self._groups, strict=True):
            group.clear()
            group.update(before)


@final
class ScalerState:
    """A loss scaler's state."""

    def __init__(self, scaler: Any) -> None:
        self._scaler = scaler
        self._before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(scaler).items()}
        self._states = {k: dict(v) for k, v in scaler._per_optimizer_states.items()}  # noqa: SLF001  # no other way

    def restore(self) -> None:
        """As before."""
        vars(self._scaler).clear()
        vars(self._scaler).update(self._before)
        states = self._scaler._per_optimizer_states  # noqa: SLF001
        states.clear()
        states.update(self._states)


@contextmanager
def standing(module: nn.Module, parameters: NamedArrays) -> Iterator[dict[int, Any]]:
    """A module at other parameters, in their precision; all as before afterwards.

    What is put into the dict, states of optimisers and scalers, is restored too.
    """
    named = dict(module.named_parameters())
    wide = any(a.dtype == np.float64 and named[name].dtype == torch.float32 for name, a in parameters.items())
    precision = _widened(module) if wide else nullcontext()
    with torch.inference_mode(mode=False), torch.enable_grad(), _restored(module) as met, precision:
        with torch.no_grad():
            for name, value in parameters.items():
                named[name].copy_(as_tensor(value, named[name].device))
        yield met


@contextmanager
def _widened(module: nn.Module) -> Iterator[None]:
    """Meanwhile its float32 tensors are float64, as `nn.Module.double` makes them, and so is what meets them."""
    tensors = [x for x in Contents(module).tensors.values() if x.dtype == torch.float32]
    casts = not any(x.dtype == torch.float64 for x in module.parameters())
    before = [(x, x.data, _gradient(x)) for x in tensors]
    try:
        for x, data, gradient in before:
            x.grad = None  # it has the dtype of its tensor at any time
            x.data = data.double()
            x.grad = None if gradient is None else gradient.double()
        with widened_calls(casts=casts), widening_inputs(module):
            yield
    finally:
        for x, data, gradient in before:
            x.grad = None
            x.data = data
            x.grad = gradient


@contextmanager
def _restored(module: nn.Module) -> Iterator[dict[int, Any]]:
    before = Values(module)
    leaves = [x for x in Contents(module).tensors.values() if x.is_leaf]
    gradients = [(x, x.grad, None if x.grad is None else x.grad.clone()) for x in leaves]
    met: dict[int, Any] = {}
    with preserved():
        try:
            yield met
        finally:
            for thing in met.values():
                thing.restore()
            before.restore()
            with torch.no_grad():
                for x, gradient, value in gradients:
                    x.grad = gradient
                    if gradient is not None:
                        gradient.copy_(value)


def _gradient(x: Tensor) -> Tensor | None:
    return x.grad if x.is_leaf else None  # PyTorch warns of asking for any other
