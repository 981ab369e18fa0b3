"""JAX's global state: its configuration. It is only ever scoped here, never set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from jax._src import config

from gradaudit.arrays import NamedArrays

__all__ = ["EXPLICIT", "precision", "preserved"]

_EXPLICIT: Any = getattr(config, "explicit_x64_dtypes", None)
#: Whether float64 can be had without 64-bit defaults: there is no public scope for that.
EXPLICIT = _EXPLICIT is not None


@contextmanager
def preserved() -> Iterator[None]:
    """Leave ``jax.config`` as it was, also after an exception and whatever the audited function sets.

    JAX has no random state (keys are arguments) and no training mode: the configuration is all there is.
    """
    before = dict(jax.config.values)
    try:
        yield
    finally:
        after = jax.config.values
        for name, value in before.items():
            if after[name] != value:
                jax.config.update(name, value)


def precision(parameters: NamedArrays, *, defaults: bool = True) -> AbstractContextManager[None]:
    """The scope in which these parameters keep their dtypes.

    With float64 among them 64-bit types are enabled, in this thread and until the scope ends; otherwise whatever the
    user has chosen stays, for the function may rely on it.

    Args:
        parameters: by name.
        defaults: what has no dtype of its own, as ``jnp.zeros(3)``, becomes 64-bit, too.
    """
    if not any(array.dtype == np.float64 for array in parameters.values()):
        return nullcontext()
    scope: AbstractContextManager[None] = jax.enable_x64(True) if defaults else _EXPLICIT("allow")  # noqa: FBT003
    return scope
