"""TensorFlow's global state around an audit, and its functions, redirected while a loss is looked at."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, final

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import stateful_random_ops

from gradaudit.backends.tensorflow.operations import OPERATIONS, Operation

__all__ = ["Redirection", "preserved", "private", "redirected"]


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the global `tf.random.Generator` as it was, also after an exception; nothing else global is touched.

    The old stateful operations (`tf.random.uniform` and its like) count their draws inside their kernels, where
    nothing can read or restore them; a pure loss uses none of them.
    """
    # tf.random.get_global_generator() would create the generator, which is a change of state; the attribute is private
    generator = getattr(stateful_random_ops, "global_generator", None)
    if generator is None:
        yield
        return
    before = generator.state.numpy().copy()
    try:
        yield
    finally:
        tf.random.set_global_generator(generator)
        generator.state.assign(before)


class Redirection(Protocol):
    """What functions do while they are redirected; each method is given the original first, then its arguments."""

    @property
    def suspended(self) -> bool:
        """The originals are called for now."""

    def stop_gradient(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """For the operation of `tf.stop_gradient`; unlike the original it is called on a running tape."""

    def numpy_function(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """For `tf.numpy_function`."""

    def custom_gradient(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """For a function under `tf.custom_gradient`."""

    def call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """For a `tf.function`."""

    def to_numpy(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """For what gives a tensor's value to NumPy or Python."""


@functools.cache
def private(module: str) -> Any:
    """A private module of TensorFlow."""
    return importlib.import_module(f"tensorflow.python.{module}")


@contextmanager
def redirected(redirection: Redirection) -> Iterator[None]:
    """Redirect TensorFlow's functions for this thread; everything is as before afterwards, also after an exception.

    The functions of the process are exchanged by the first thread to come and put back by the last to go.

    Raises:
        ImportError, AttributeError, KeyError: this TensorFlow has no such function; nothing is redirected.
    """
    thread = threading.get_ident()
    with _lock:
        outer = _redirections.get(thread)
        if not _redirections:
            _install()
        _redirections[thread] = redirection
    try:
        yield
    finally:
        with _lock:
            if outer is None:
                del _redirections[thread]
            else:
                _redirections[thread] = outer
            if not _redirections:
                _installed.close()


_lock = threading.Lock()
_redirections: dict[int, Redirection] = {}
_installed = ExitStack()


def _install() -> None:
    with ExitStack() as undo:
        for owner, name, redirect in _targets():
            original = vars(owner)[name]
            undo.callback(setattr, owner, name, original)
            setattr(owner, name, redirect(original))
        _installed.push(undo.pop_all())


def _targets() -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """Owner, name, and how to redirect it."""
    eager_tensor = private("framework.ops")._EagerTensorBase  # noqa: SLF001  # all of this is private
    yield private("ops.array_ops"), "record", _Record
    yield private("ops.gen_array_ops"), "stop_gradient", _to("stop_gradient")
    yield private("ops.script_ops"), "py_func_common", _to("numpy_function")
    yield private("ops.custom_gradient"), "_eager_mode_decorator", _to("custom_gradient")
    yield private("eager.polymorphic_function.polymorphic_function").Function, "__call__", _to("call")
    for operation in OPERATIONS:
        yield private(operation.module), operation.name, functools.partial(_operation, operation)
    for name in ("numpy", "__array__", "__float__"):
        yield eager_tensor, name, _to("to_numpy")
    for name in ("array", "asarray"):  # they read a tensor's memory without asking it
        yield np, name, _to("to_numpy")
    for name in [name for name, function in vars(np).items() if isinstance(function, np.ufunc)]:
        yield np, name, _Ufunc


def _to(method: str) -> Callable[[Any], Any]:
    def redirect(original: Any) -> Any:
        @functools.wraps(original)
        def redirected(*args: Any, **kwargs: Any) -> Any:
            redirection = _listening()
            if redirection is None:
                return original(*args, **kwargs)
            return getattr(redirection, method)(original, *args, **kwargs)

        return redirected

    return redirect


def _operation(operation: Operation, original: Any) -> Callable[..., Any]:
    @functools.wraps(original)
    def redirected(*args: Any, **kwargs: Any) -> Any:
        redirection = _listening()
        if redirection is None or not tf.executing_eagerly():
            return original(*args, **kwargs)
        return redirection.custom_gradient(lambda _, args, kwargs: original(*args, **kwargs), operation, args, kwargs)

    return redirected


def _listening() -> Redirection | None:
    redirection = _redirections.get(threading.get_ident())
    return None if redirection is None or redirection.suspended else redirection


@final
class _Ufunc:
    """A universal function of NumPy (`np.power`), which reads a tensor's memory without asking it."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (redirection := _listening()) is not None:
            args = tuple(redirection.to_numpy(_as_array, a) if hasattr(a, "_numpy") else a for a in args)
        return self._original(*args, **kwargs)


_as_array = np.asarray


@final
class _Record:
    """TensorFlow's module of that name for `tf.stop_gradient`, which stops the tape and then calls its operation."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def stop_recording(self) -> Any:
        return nullcontext() if _listening() is not None else self._original.stop_recording()
