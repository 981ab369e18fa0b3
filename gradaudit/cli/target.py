"""What a command is given by name: ``module:object`` or ``path.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from gradaudit.errors import OptionError

__all__ = ["load", "made"]

_HINT = "write module:object or path/to/file.py:name, for example train.py:make_model"


def load(text: str) -> Any:
    """The object, which may be an attribute of another (``module:a.b``).

    Modules are looked for in the current folder, too, and a file's own imports in its folder, as Python does it. What
    the user's code raises passes unchanged.

    Raises:
        OptionError: not of this form, no such file or module, or no such name in it.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        msg = f"{text!r} names no object"
        raise OptionError(msg, where="MODEL", hint=_HINT)
    found: Any = _file(Path(place)) if place.endswith(".py") else _module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            msg = f"there is no {name!r} in {place}"
            names = [n for n in dir(found) if not n.startswith("_")]
            raise OptionError(msg, where="MODEL", hint=f"one of {', '.join(names[:12])}" if names else _HINT)
        found = getattr(found, part)
    return found


def made(found: Any) -> Any:
    """What a function that needs no arguments returns; anything else as it is. What it raises passes unchanged."""
    # an object that can be called is a layer, more likely than a function that makes one
    if not inspect.isroutine(found) and not inspect.isclass(found) and not isinstance(found, partial):
        return found
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):  # it needs arguments, or nobody knows
        return found
    return found()


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        msg = f"there is no file {path}"
        raise OptionError(msg, where="MODEL", hint=_HINT)
    _import_from(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # it ends with .py
    assert spec.loader is not None  # as any source has
    module = importlib.util.module_from_spec(spec)
    # as an import would: dataclasses and pickle look their module up
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    _import_from(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # a module that the user's own lacks is the user's error
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        msg = f"there is no module {name!r}"
        raise OptionError(msg, where="MODEL", hint=_HINT) from None


def _import_from(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
