"""In which format narrower than its tensors a function computes: under `torch.autocast`, and in TF32 on a GPU.

Whether float32 products lose digits is not read from the flags for it, of which there are two interfaces and which not
every device and kernel follows: it is tried, on the device, with numbers that need more digits than the narrower
formats have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradaudit.backends.torch.state import DispatchMode, eager

__all__ = ["narrowest"]

#: The operators of ATen that PyTorch may let lose digits, and the kind of product that shows whether it does.
_PRODUCTS = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "addbmm"), "matrices"),
    **dict.fromkeys(("_scaled_dot_product_efficient_attention", "_efficient_attention_forward"), "matrices"),
    **dict.fromkeys(("convolution", "cudnn_convolution"), "images"),
    "_cudnn_rnn": "steps",
}

#: By how much more than one a number must be: fewer digits than TF32 needs, fewer than bfloat16.
_LOST = {2.0**-13: 2.0**-10, 2.0**-9: 2.0**-7}


class _Autocast(TorchFunctionMode):  # type: ignore[misc]
    """Notes the format that autocast is set to where an operator meets floating-point tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in args:
            if isinstance(x, Tensor) and x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
                self.eps = max(self.eps, torch.finfo(torch.get_autocast_dtype(x.device.type)).eps)
        return func(*args, **(kwargs or {}))


class _Products(DispatchMode):
    """Notes which kinds of product of float32 tensors there are, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: set[tuple[str, torch.device]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = _PRODUCTS.get(func.overloadpacket.__name__)
        if kind is not None:
            self.pairs |= {(kind, x.device) for x in args if isinstance(x, Tensor) and x.dtype == torch.float32}
        return func(*args, **(kwargs or {}))


def narrowest(call: Callable[[], Any], devices: Iterable[Any]) -> float | None:
    """Machine epsilon of the coarsest format that a call autocasts to, or multiplies float32 tensors in; None: none.

    Args:
        call: the loss.
        devices: of its parameters.
    """
    with torch.no_grad(), eager():
        # to watch every operator takes time
        with _Autocast() as autocast, _Products() if _may_lose(devices) else nullcontext() as seen:
            call()
        found = [autocast.eps, *(_eps(*pair) for pair in (seen.pairs if seen else ()))]
    return max(found) or None


def _may_lose(devices: Iterable[Any]) -> bool:
    """Whether products may lose digits; on the CPU only if PyTorch was told so."""
    try:
        told = torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # told by the other interface, and refuses to be asked by this one
        told = True
    return told or any(torch.device(device).type != "cpu" for device in devices)


def _eps(kind: str, device: torch.device) -> float:
    """Of the format in which such products are computed there now; 0: of float32."""
    return max(
        (eps for more, eps in _LOST.items() if abs(_product(kind, 1 + more, device) - 1) < more / 2), default=0.0
    )


def _product(kind: str, value: float, device: torch.device) -> float:
    """A sum of 64 products, each of ``value`` and 1/64."""

    def full(number: float, *shape: int) -> Tensor:
        return torch.full(shape, number, dtype=torch.float32, device=device)

    if kind == "matrices":
        return float((full(value, 64, 64) @ full(1 / 64, 64, 64))[0, 0])
    if kind == "images":
        return float(torch.conv2d(full(value, 1, 64, 8, 8), full(1 / 64, 64, 64, 1, 1))[0, 0, 0, 0])
    weights = [full(1 / 64, 64, 64), full(0.0, 64, 64)]
    options = {"has_biases": False, "train": False, "bidirectional": False, "batch_first": False}
    given = full(value, 4, 8, 64), full(0.0, 1, 8, 64)
    return float(torch.rnn_relu(*given, weights, num_layers=1, dropout=0.0, **options)[0][0, 0, 0])
