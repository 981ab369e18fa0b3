"""Whether tensors that a loss computes outlive it: in a list or an object of the user's, where nobody takes them out.

What `torch.func.vmap` computes is dead when it returns; kept so, the next use of it would raise, long after the audit.
"""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Made"]

#: Properties that return a tensor that was there before.
_STANDING = (Tensor.grad.__get__, Tensor._base.__get__)  # noqa: SLF001


class Made(TorchFunctionMode):  # type: ignore[misc]
    """Notes the tensors that are made meanwhile, and keeps none."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in _STANDING:
            given = {id(x) for x in args}  # written in place, or already what was asked for
            items = out if isinstance(out, (tuple, list)) else (out,)
            self._made += [ref(x) for x in items if isinstance(x, Tensor) and id(x) not in given]
        return out

    def outlive(self) -> bool:
        """Whether one of them is still there: asked when the loss has returned, and its value is gone."""
        if self._any():
            gc.collect()  # a cycle keeps what nobody can reach
        return self._any()

    def _any(self) -> bool:
        return any(x() is not None for x in self._made)
