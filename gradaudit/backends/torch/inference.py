"""`torch.inference_mode` while a program is watched: a C++ guard that no mode of functions sees, made a `no_grad`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch

from gradaudit.backends.torch.state import Patches

__all__ = ["as_no_grad", "is_inference"]

_MODE = torch.inference_mode
_NAME = "_no_grad_instead"
_here = threading.local()


@contextmanager
def as_no_grad() -> Iterator[None]:
    """Let it only switch off the gradient meanwhile, in this thread."""
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        with _PATCHES.held():
            yield
    finally:
        _here.depth -= 1


def is_inference(code: CodeType) -> bool:
    """Whether grad mode was switched off from here."""
    return code is _enter.__code__


_original_enter, _original_exit = _MODE.__enter__, _MODE.__exit__


def _enter(self: Any) -> None:
    if not (self.mode and getattr(_here, "depth", 0)):
        _original_enter(self)
        return
    setattr(self, _NAME, torch.no_grad())
    getattr(self, _NAME).__enter__()


def _exit(self: Any, *error: Any) -> None:
    instead = self.__dict__.pop(_NAME, None)
    (instead.__exit__ if instead is not None else _original_exit.__get__(self))(*error)


def _install(patches: Patches) -> None:
    patches.put(_MODE, "__enter__", _enter)
    patches.put(_MODE, "__exit__", _exit)


_PATCHES = Patches(_install)
