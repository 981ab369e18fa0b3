"""Graphs rebuilt with something changed; the original stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pytensor.graph.traversal import io_toposort
from pytensor.tensor.math import Prod, Sum

__all__ = ["Change", "copied_trace", "rebuilt"]

#: (node, its inputs as rebuilt) -> what takes the place of its outputs; None: nothing else.
Change: TypeAlias = Callable[[Any, list[Any]], list[Any] | None]


def rebuilt(variable: Any, instead: Mapping[Any, Any], change: Change | None = None) -> Any:
    """The variable with others in place of some that it is computed from.

    Args:
        variable: symbolic.
        instead: by variable, what takes its place; a wider one, as a float64 twin has, widens what it meets.
        change: asked of every operation.

    Raises:
        TypeError: an operation is bound to the types that it was made for, as a scan is.
    """
    built = dict(instead)
    for node in io_toposort([], [variable]):
        inputs = [built.get(v, v) for v in node.inputs]
        made = None if change is None else change(node, inputs)
        if made is None:
            if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
                continue
            same = all(old.type.is_super(new.type) for new, old in zip(inputs, node.inputs, strict=True))
            made = node.clone_with_new_inputs(inputs).outputs if same else _anew(node.op, inputs)
            made = copied_trace(node.outputs, made)
        built |= {old: new for old, new in zip(node.outputs, made, strict=True) if old not in instead}
    return built.get(variable, variable)


def copied_trace(old: list[Any], new: list[Any]) -> list[Any]:
    """The new variables, said to be written where the old ones are."""
    for variable, source in zip(new, old, strict=True):
        variable.tag.trace = getattr(source.tag, "trace", [])
    return list(new)


def _anew(op: Any, inputs: list[Any]) -> list[Any]:
    """An operation on inputs of other types: called again, it chooses its own."""
    if isinstance(op, Sum | Prod):
        op = type(op)(axis=op.axis)  # it notes the types that it was made for
    return list(op(*inputs, return_list=True))
