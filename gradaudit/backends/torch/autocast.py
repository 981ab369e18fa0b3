"""Whether a function computes under `torch.autocast`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["narrowest"]


class _Watching(TorchFunctionMode):  # type: ignore[misc]
    """Notes the format that autocast is set to where an operator meets floating-point tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in args:
            if isinstance(x, Tensor) and x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
                self.eps = max(self.eps, torch.finfo(torch.get_autocast_dtype(x.device.type)).eps)
        return func(*args, **(kwargs or {}))


def narrowest(call: Callable[[], Any]) -> float | None:
    """Machine epsilon of the coarsest format that a call autocasts to; None: it does not."""
    with torch.no_grad(), _Watching() as watching:
        call()
    return watching.eps or None
