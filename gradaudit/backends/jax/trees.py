"""Names of the leaves of pytrees."""

from __future__ import annotations

from typing import Any

__all__ = ["path_of"]


def path_of(path: Any) -> list[str]:
    """The parts of a path, without JAX's brackets and quotes: ``layers``, ``0``, ``weight``."""
    return [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
