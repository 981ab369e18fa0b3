"""What PyTensor users have: a symbolic loss and the shared variables that they train."""

from __future__ import annotations

from typing import Any

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable

from gradaudit.backends.containers import flattened
from gradaudit.backends.pytensor.graphs import rebuilt
from gradaudit.backends.pytensor.model import PytensorModel
from gradaudit.errors import ModelContractError

__all__ = ["adapted"]


def adapted(target: Any, at: Any) -> PytensorModel | None:
    """A symbolic loss of shared variables, or a function that makes one of what takes their place; None: neither.

    Parameters have the names of their shared variables, or their places in ``at`` where these are not unique.

    Args:
        target: a symbolic number, or a function of containers like ``at``.
        at: floating-point shared variables in a list, tuple or mapping, or one alone; their values are the base point.

    Raises:
        ModelContractError: a loss without its shared variables.
    """
    symbolic = isinstance(target, Variable)
    found = flattened(at, _is_trained) if symbolic or callable(target) else None
    if found is None:
        if not symbolic:
            return None
        msg = "a symbolic loss does not say which variables it is differentiated by"
        raise ModelContractError(msg, where="audit()", hint="audit(loss, at=[W, b]), shared variables of floats")
    places, put = found
    if not symbolic:
        return PytensorModel(lambda p: target(put(p)), places)
    names = [v.name for v in places.values()]
    own = None not in names and len(set(names)) == len(names)
    shared = dict(zip(names if own else places, places.values(), strict=True))
    return PytensorModel(lambda p: rebuilt(target, {v: p[name] for name, v in shared.items()}), shared)


def _is_trained(x: Any) -> bool:
    return isinstance(x, SharedVariable) and np.issubdtype(getattr(x.type, "dtype", "O"), np.floating)
