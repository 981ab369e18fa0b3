"""Nested containers of tensors, as the frameworks without a tree library of their own are given them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["flattened"]

#: The name of a tensor that stands alone.
_ALONE = "x"


def flattened(
    tree: Any, is_leaf: Callable[[Any], bool]
) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]] | None:
    """The tensors of a mapping, list or tuple, or of several in one another, by name; and how to put others there.

    Names are paths: ``encoder.weight``, ``0.bias``; a tensor alone is ``x``. What is no tensor stays what it is.

    Args:
        tree: the container, or a tensor.
        is_leaf: whether something is a tensor.

    Returns:
        None where there is no tensor.
    """
    leaves: dict[str, Any] = {}
    _walk(tree, (), is_leaf, leaves)

    def rebuilt(values: Mapping[str, Any]) -> Any:
        return _rebuilt(tree, (), is_leaf, values)

    return (leaves, rebuilt) if leaves else None


def _name(path: tuple[str, ...]) -> str:
    return ".".join(path) or _ALONE


def _walk(tree: Any, path: tuple[str, ...], is_leaf: Callable[[Any], bool], leaves: dict[str, Any]) -> None:
    if is_leaf(tree):
        leaves[_name(path)] = tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            _walk(value, (*path, str(key)), is_leaf, leaves)
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            _walk(value, (*path, str(i)), is_leaf, leaves)


def _rebuilt(tree: Any, path: tuple[str, ...], is_leaf: Callable[[Any], bool], values: Mapping[str, Any]) -> Any:
    if is_leaf(tree):
        return values[_name(path)]
    if isinstance(tree, Mapping):
        return {key: _rebuilt(value, (*path, str(key)), is_leaf, values) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [_rebuilt(value, (*path, str(i)), is_leaf, values) for i, value in enumerate(tree)]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree
