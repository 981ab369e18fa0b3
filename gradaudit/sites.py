"""Where in the user's code a gradient is cut: a line, the same in every framework."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

__all__ = ["Cut"]


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
