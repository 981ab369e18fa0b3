"""Which tensors share their numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["identity", "storage"]


def storage(x: Tensor) -> Any:
    """What the views of a tensor share; of one without storage (sparse, inside a transform) itself."""
    try:
        return x.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return x


def identity(x: Tensor) -> int:
    """A number that is that of this storage as long as it is alive."""
    own = storage(x)
    return id(x) if own is x else int(own._cdata)  # noqa: SLF001  # data_ptr() is 0 for all that are empty
