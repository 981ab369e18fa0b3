"""Sites in the user's code: the line that calls TensorFlow, a cut there, the rule of a function."""

from __future__ import annotations

import functools
import inspect
import itertools
import site
import sys
import sysconfig
from types import CodeType, FrameType
from typing import Any, NamedTuple

from gradaudit.backends.tensorflow.operations import Operation
from gradaudit.backends.tensorflow.state import private
from gradaudit.sites import CustomRule, Cut, definition, folders

__all__ = ["Caller", "caller", "cut_here", "rule_of", "wrapped"]


class Caller(NamedTuple):
    """Who calls TensorFlow.

    Attributes:
        path: the source file.
        line: from 1; 0 where unknown.
        column: from 0; 0 where unknown.
        function: in which the call is written.
        library: something in between, or the caller itself, is not the user's.
        called: the public name of what is called, without its module; empty for an operator, as in ``x / y``.
    """

    path: str
    line: int
    column: int
    function: str
    library: bool
    called: str


_FRAMEWORKS = folders("tensorflow", "keras", "tf_keras")
_TRANSPARENT = (*folders("gradaudit", "numpy"), functools.__file__)
_LIBRARIES = tuple({*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")})

#: What stands in TensorFlow and Keras between a user and what cuts, by folder or by function.
_WRAPPING = ("python/util/", "python/ops/weak_tensor_ops.py")
_WRAPPERS = ("stop_gradient", "convert_to_numpy", "numpy_function", "py_func")
_OPERATORS = ("framework/override_binary_operator.py", "ops/tensor_math_operator_overrides.py")

#: What calls other functions: what those call is nearer to the point.
_CALLING = ("cond", "case", "switch_case", "while_loop", "map_fn", "scan", "foldl", "foldr", "vectorized_map")


def caller() -> Caller:
    """The first outside TensorFlow, Keras, NumPy and here."""
    frame, library, called = sys._getframe(1), False, ""  # noqa: SLF001
    while True:
        path = frame.f_code.co_filename
        if path.startswith(_FRAMEWORKS):
            library = library or not (any(part in path for part in _WRAPPING) or frame.f_code.co_name in _WRAPPERS)
            name = _public_name(frame)
            if path.endswith(_OPERATORS):
                called = ""
            elif name and not (called and name in _CALLING):
                called = name
        elif not path.startswith(_TRANSPARENT):
            break
        if frame.f_back is None:
            break
        frame = frame.f_back
    line, column = _position(frame.f_code, frame.f_lasti)
    return Caller(path, line, column, frame.f_code.co_name, library or _is_library(path), called)


def _is_library(path: str) -> bool:
    """Whether a file belongs to an installed package."""
    return path.startswith((*_FRAMEWORKS, *_LIBRARIES))


@functools.lru_cache(maxsize=4096)
def _position(code: CodeType, instruction: int) -> tuple[int, int]:
    """Line and column; the instruction itself has other offsets once Python has specialised it."""
    line, _, column, _ = next(itertools.islice(code.co_positions(), instruction // 2, None), (None,) * 4)
    return line or 0, column or 0


_public_names: dict[CodeType, str] = {}


def _public_name(frame: FrameType) -> str:
    """What users call this function: ``norm`` of ``tf.linalg.norm`` or ``keras.ops.norm``; empty if they do not."""
    code = frame.f_code
    if code not in _public_names:
        function = frame.f_globals.get(code.co_name)
        named = _exported(function) if inspect.isroutine(function) else None
        _public_names[code] = (named or "").rpartition(".")[2]
    return _public_names[code]


def _exported(function: Any) -> str | None:
    try:
        name: str | None = private("util.tf_export").get_canonical_name_for_symbol(function)
        keras = sys.modules.get("keras.src.api_export")
        return keras.get_name_from_symbol(function) if name is None and keras is not None else name
    except (ImportError, AttributeError):  # a name is not worth a failure in other versions
        return None


def cut_here(kind: str, *, removable: bool) -> Cut:
    """A cut at the line that calls."""
    at = caller()
    return Cut(
        kind=kind,
        path=at.path,
        line=at.line,
        column=at.column,
        function=at.function,
        library=at.library,
        removable=removable,
    )


def rule_of(function: Any, backward: Any) -> CustomRule:
    """At the backward where it is written apart, otherwise at the function."""
    around = wrapped(function)
    if around is not None:
        kind, own = around
        at = caller()
        name = function.name if isinstance(function, Operation) else _name(own)
        return CustomRule(kind=kind, name=name, path=at.path, line=at.line, library=_is_library(at.path))
    path, line = _definition(backward) or _definition(function) or ("", 0)
    return CustomRule(kind="custom_gradient", name=_name(function), path=path, line=line, library=_is_library(path))


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__)).rpartition("<locals>.")[2]


def wrapped(function: Any) -> tuple[str, Any] | None:
    """What TensorFlow makes a rule for, and the function: `tf.recompute_grad`, `tf.grad_pass_through`, an operation."""
    if isinstance(function, Operation):
        return "operation", function.primal
    code = getattr(function, "__code__", None)
    if code is None or not code.co_filename.endswith("python/ops/custom_gradient.py"):
        return None
    own = inspect.getclosurevars(function).nonlocals.get("f")
    return None if own is None else (function.__qualname__.partition(".")[0], own)


def _definition(function: Any) -> tuple[str, int] | None:
    """File and line of the ``def`` or ``lambda``; None where there is none, as in a built-in function."""
    function = inspect.unwrap(function)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if not hasattr(function, "__code__"):
        # bound methods pass the attribute on, objects with a __call__ do not
        function = getattr(type(function), "__call__", None)  # noqa: B004  # the method, not whether there is one
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    return code.co_filename, definition(code.co_filename, code.co_firstlineno)
