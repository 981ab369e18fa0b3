"""Reports as JSON and back: every dataclass by its fields, driven by their types, so that nothing can be forgotten."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from gradaudit.errors import GradauditError, ReportFormatError

__all__ = ["dumps", "loads"]

T = TypeVar("T")


def dumps(report: Any) -> str:
    """The JSON text; numbers that JSON lacks become the strings NaN, Infinity and -Infinity."""
    return json.dumps(_encode(report), indent=1, allow_nan=False)


def loads(text: str, cls: type[T], schema_version: int) -> T:
    """Read what `dumps` wrote.

    Raises:
        ReportFormatError: no JSON, another schema version, or fields that do not fit.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        msg = f"this is no JSON: {error}"
        raise ReportFormatError(msg, hint="write reports with report.save(path)") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != schema_version:
        msg = f"the report has schema version {version}, this gradaudit reads {schema_version}"
        raise ReportFormatError(msg, hint="run the audit again with this version")
    try:
        decoded: T = _decode(data, cls)
    except (TypeError, ValueError, KeyError, AttributeError, GradauditError) as error:
        msg = f"the report's fields do not fit: {error}"
        raise ReportFormatError(msg, hint="run the audit again with this version") from error
    return decoded


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(value: Any, kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _decode(value, next(a for a in arguments if a is not NoneType))
    if origin is tuple:
        inner = arguments[0]
        return tuple(_decode(item, inner) for item in value)
    if origin is Mapping:
        return {key: _decode(item, arguments[1]) for key, item in value.items()}
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{f.name: _decode(value[f.name], hints[f.name]) for f in fields(kind)})
    if isinstance(kind, type) and (issubclass(kind, Enum) or kind is float):
        return kind(value)
    return value
