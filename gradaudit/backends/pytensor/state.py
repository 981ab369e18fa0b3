"""What evaluating a PyTensor graph may change: the shared variables that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.traversal import explicit_graph_inputs, graph_inputs
from pytensor.tensor.random.type import RandomType

__all__ = ["free_inputs", "is_generator", "preserved", "shared_inputs"]


def shared_inputs(variable: Any) -> list[Any]:
    """The shared variables that a variable is computed from."""
    return list(dict.fromkeys(v for v in graph_inputs([variable]) if isinstance(v, SharedVariable)))


def free_inputs(variable: Any) -> list[Any]:
    """The inputs without a value that a variable is computed from."""
    return list(dict.fromkeys(explicit_graph_inputs([variable])))


def is_generator(variable: Any) -> bool:
    """Whether a variable holds a random generator."""
    return isinstance(variable.type, RandomType)


@contextmanager
def preserved(variables: Sequence[Any]) -> Iterator[None]:
    """Leave shared variables as they were, also after an exception.

    Those with a ``default_update``, as a random generator's, change whenever a function over them is called. Nothing
    global is touched: PyTensor's configuration is only read.
    """
    updated = [(v, v.get_value(borrow=False)) for v in variables if getattr(v, "default_update", None) is not None]
    try:
        yield
    finally:
        for variable, value in updated:
            variable.set_value(value, borrow=False)
