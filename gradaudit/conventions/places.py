"""Where a layer is in the first model and in the port, and how its parameters are named there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, TypedDict

from gradaudit.arrays import Array, NamedArrays
from gradaudit.errors import OptionError

__all__ = ["Places", "Recipes", "full", "two"]

Recipes: TypeAlias = dict[str, Callable[[NamedArrays], Array]]


class Places(TypedDict, total=False):
    """Where the layer is: the first model's place, then the port's.

    Of Flax NNX, ``nnx`` are the cells whose gates are in one tensor, ``nnx_apart`` is its ``LSTMCell``.
    """

    torch: str
    keras: str
    flax: str
    nnx: str
    nnx_apart: str
    equinox: str
    lasagne: str
    gradaudit: str


def two(places: Places, known: Mapping[str, object]) -> tuple[tuple[str, str], tuple[str, str]]:
    """The library and place of the first model's layer and of the port's.

    Raises:
        OptionError: not two, or of a library whose convention is not known.
    """
    pairs = [(library, str(place)) for library, place in places.items()]
    if len(pairs) != 2 or not all(library in known for library, _ in pairs):
        msg = f"a layer is converted from one place to another, got {', '.join(places) or 'none'}"
        hint = f'for example torch="out", {next(k for k in known if k != "torch")}="..."; of {", ".join(known)}'
        raise OptionError(msg, where="gradaudit.conventions", hint=hint)
    return pairs[0], pairs[1]


def full(library: str, place: str, own: str, pattern: str = "*") -> str:
    """The name in the model of a layer's parameter, whose own name this is.

    Args:
        library: torch, keras, ...
        place: the layer's prefix, or a pattern with a ``*``.
        own: the parameter's name in its layer.
        pattern: what follows a prefix.
    """
    if "*" not in place:
        place += f"{'/' if library == 'keras' else '.'}{pattern}"
    return place.replace("*", own, 1)
