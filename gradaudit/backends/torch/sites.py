"""Where in the user's code a call or a function is."""

from __future__ import annotations

import contextlib
import inspect
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from gradaudit.sites import Cut, definition, folders

__all__ = ["OURS", "SKIPPED", "at_frame", "at_function"]

OURS = folders("gradaudit")
#: Frames in these are not where a cut is written.
SKIPPED = (*OURS, *folders("torch", "keras"), contextlib.__file__)


def at_frame(kind: str, frame: FrameType | None, function: str, *, removable: bool) -> Cut:
    """The cut by a call, at its line; ``function``: the name, if it is not that of the frame."""
    if frame is None:
        return Cut(kind=kind, path="unknown", line=0, library=True, removable=removable)
    code = frame.f_code
    line, _, column, _ = next(islice(code.co_positions(), frame.f_lasti // 2, None), (None,) * 4)
    return Cut(
        kind=kind,
        path=code.co_filename,
        line=line or frame.f_lineno,
        column=column or 0,
        function=_own(function or code.co_qualname),
        library=_is_installed(code.co_filename),
        removable=removable,
    )


def at_function(kind: str, function: Any) -> Cut | None:
    """The cut by a function, at its ``def``; None: it has no code of its own, as an object that is called."""
    code = getattr(inspect.unwrap(getattr(function, "func", function)), "__code__", None)
    if code is None:
        return None
    return Cut(
        kind=kind,
        path=code.co_filename,
        line=definition(code.co_filename, code.co_firstlineno),
        function=_own(code.co_qualname),
        library=_is_installed(code.co_filename),
    )


def _own(name: str) -> str:
    return name.rpartition("<locals>.")[2]


def _is_installed(path: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)
