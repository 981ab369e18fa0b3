"""Places in the user's code where a gradient is made, cut or lost: a line, the same in every framework."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Broadcast", "CustomRule", "Cut", "Origin", "definition", "folders"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One place between the parameters and the loss where values go on and the gradient does not.

    Two cuts are the same if what they are and where they are is the same; how often they ran does not matter.

    Attributes:
        kind: ``detach``, ``no_grad``, ``.data``, ``item``, ``rewrap``, ``stop_gradient``, ...: the user's own word.
        path: the source file.
        line: from 1; 0 where unknown.
        column: from 0; 0 where unknown. Two cuts may share a line.
        function: in which it is written, its qualified name where known.
        executions: how often it ran in one loss, on values that depend on parameters.
        library: written in an installed package, not in the user's code.
        removable: the gradient can be taken with this cut removed.
    """

    kind: str
    path: str
    line: int
    column: int = 0
    function: str = ""
    executions: int = field(default=1, compare=False)
    library: bool = field(default=False, compare=False)
    removable: bool = field(default=True, compare=False)

    @property
    def place(self) -> str:
        """For people: ``model.py:57``."""
        return f"{Path(self.path).name}:{self.line}"

    @property
    def name(self) -> str:
        """Of the function, with its class, without the functions around it."""
        return self.function.rpartition("<locals>.")[2]

    def matches(self, glob: str) -> bool:
        """Whether a glob names its line, with or without the folder, or its function, with or without the class."""
        names = self.place, f"{self.path}:{self.line}", self.function, self.name, self.name.rpartition(".")[2]
        return any(fnmatchcase(name, glob) for name in names)

    def __str__(self) -> str:
        return f"{self.kind} at {self.place}" + (f" in {self.name}" if self.name else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomRule:
    """A derivative written by hand, which the loss runs: an `autograd.Function`, a `custom_vjp`, a `custom_gradient`.

    Attributes:
        kind: ``autograd.Function``, ``custom_vjp``, ``custom_jvp``, ``custom_gradient``: the user's own word.
        name: of the function or class, for example ``MyGelu``.
        path: the source file of the rule, the backward where that is written apart.
        line: from 1; 0 where unknown.
        executions: how often it ran in one loss, on values that depend on parameters.
        library: written in an installed package, not in the user's code.
        error: of the rule beside the derivative of its own primal, on the inputs that it saw: the largest relative
            error over its inputs; NaN where that cannot be taken.
        argument: the input with that error, from 0, among those that have a gradient.
    """

    kind: str
    name: str
    path: str
    line: int
    executions: int = field(default=1, compare=False)
    library: bool = field(default=False, compare=False)
    error: float = field(default=float("nan"), compare=False)
    argument: int = field(default=0, compare=False)

    @property
    def place(self) -> str:
        """For people: ``ops.py:31``."""
        return f"{Path(self.path).name}:{self.line}"

    def __str__(self) -> str:
        return f"{self.kind} {self.name} at {self.place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The first operation of the backward pass that makes something non-finite out of what was finite.

    Attributes:
        operation: the framework's name of it, for example ``sqrt``.
        path: the source file of the forward operation.
        line: from 1; 0 where unknown.
        function: in which it is written.
        forward: its own value was not finite already, in the forward pass.
    """

    operation: str
    path: str
    line: int
    function: str = ""
    forward: bool = False

    @property
    def place(self) -> str:
        """For people: ``model.py:57``."""
        return f"{Path(self.path).name}:{self.line}"

    def __str__(self) -> str:
        return f"{self.operation} at {self.place}" + (f" in {self.function}" if self.function else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """An elementwise operation that takes (N,) and (N, 1) for N x N pairs, of which a sum or mean is taken.

    Attributes:
        operation: the framework's name of it, for example ``sub``.
        shapes: of its two operands.
        path: the source file.
        line: from 1; 0 where unknown.
        function: in which it is written.
    """

    operation: str
    shapes: tuple[tuple[int, ...], ...]
    path: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        place = f"{Path(self.path).name}:{self.line}" + (f" in {self.function}" if self.function else "")
        n = max(self.shapes[0])
        return f"{self.operation} of {self.shapes[0]} and {self.shapes[1]} at {place} is taken over ({n}, {n}) pairs"


@lru_cache(maxsize=4096)
def definition(path: str, first: int) -> int:
    """The line of the ``def`` of code that begins at a line; with decorators it begins at the first of them."""
    if not linecache.getline(path, first).lstrip().startswith("@"):
        return first
    numbers = range(first, first + _DECORATORS)
    return next((n for n in numbers if linecache.getline(path, n).lstrip().startswith(("def ", "async def "))), first)


#: Lines that decorators may take.
_DECORATORS = 50


def folders(*packages: str) -> tuple[str, ...]:
    """Where the code of these packages lies, with a slash at the end; nothing of those that are not installed."""
    specs = [find_spec(package) for package in packages]
    return tuple(str(Path(spec.origin).parent) + "/" for spec in specs if spec is not None and spec.origin)
