"""Which backends there are, which are installed, and how to get one; a framework is imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, TypeVar, cast

from gradaudit.errors import (
    AmbiguousBackendError,
    BackendError,
    BackendNotInstalledError,
    BackendVersionError,
    UnknownBackendError,
)
from gradaudit.protocols import Backend, Model, Operator

__all__ = ["BACKENDS", "BackendSpec", "get", "installed_version", "model_of", "names", "operator_of", "step_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """One row of the table of backends.

    Attributes:
        name: its folder in `gradaudit.backends`, its extra and its tox environment.
        package: the framework's import name.
        distributions: the installed distributions that provide it, first found first.
        minimum: the oldest version supported, as the extra in pyproject.toml says.
    """

    name: str
    package: str
    distributions: tuple[str, ...]
    minimum: tuple[int, ...]


#: Keep aligned with the extras in pyproject.toml; a test compares them.
BACKENDS: tuple[BackendSpec, ...] = (
    BackendSpec(name="numpy", package="numpy", distributions=("numpy",), minimum=(1, 26)),
    BackendSpec(name="torch", package="torch", distributions=("torch",), minimum=(2, 6)),
    BackendSpec(name="jax", package="jax", distributions=("jax",), minimum=(0, 8)),
    BackendSpec(
        name="tensorflow",
        package="tensorflow",
        distributions=("tensorflow", "tensorflow-cpu", "tensorflow-macos"),
        minimum=(2, 16),
    ),
    BackendSpec(name="pytensor", package="pytensor", distributions=("pytensor",), minimum=(3, 0)),
)


def names() -> tuple[str, ...]:
    """All known backends, NumPy first."""
    return tuple(spec.name for spec in BACKENDS)


def installed_version(name: str) -> str | None:
    """The version of a backend's framework, without importing it; None where it is absent.

    Raises:
        UnknownBackendError: no such backend.
    """
    spec = _spec(name)
    if find_spec(spec.package) is None:
        return None
    for distribution in spec.distributions:
        try:
            return _version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


@cache
def _version(distribution: str) -> str:
    # read once: it takes as long as auditing a small operator
    return metadata.version(distribution)


def get(name: str) -> Backend:
    """The backend of that name, its framework imported now.

    Raises:
        UnknownBackendError: no such backend.
        BackendNotInstalledError: its framework is not installed.
        BackendVersionError: its framework is older than the extra asks for.
    """
    spec = _spec(name)
    version = installed_version(name)
    install = f"pip install 'gradaudit[{spec.name}]'"
    if version is None:
        msg = f"the backend {name!r} needs {spec.distributions[0]}, which is not installed"
        raise BackendNotInstalledError(msg, hint=install)
    if _numbers(version) < spec.minimum:
        wanted = ".".join(map(str, spec.minimum))
        msg = f"the backend {name!r} needs {spec.package} {wanted} or newer, but {version} is installed"
        raise BackendVersionError(msg, hint=f"pip install --upgrade '{spec.distributions[0]}>={wanted}'")
    return cast("Backend", import_module(f"gradaudit.backends.{name}").backend)


def model_of(
    target: Any,
    at: Any = None,
    *,
    loss: Callable[..., Any] | None = None,
    gradient: Callable[..., Any] | bool | None = None,
) -> Model:
    """What people have, as a model: itself if it is one, else by the framework that recognises it.

    Only frameworks that are loaded already are asked; none is imported for it.

    Raises:
        AmbiguousBackendError: none recognises it, or more than one.
        BackendVersionError: none recognises it, and one that is loaded is too old to be asked.
    """
    if at is None and loss is None and gradient is None and isinstance(target, Model):
        return target
    what = f"a {type(target).__name__}" + ("" if at is None else f" at a {type(at).__name__}")
    hint = (
        "a module with loss=..., a function with its parameters as `at` (and gradient=... where they are NumPy "
        "arrays), or an object with parameters(), loss(p) and value_and_grad(p)"
    )
    return _recognised(
        lambda backend: backend.adapt(target, at, loss=loss, gradient=gradient), what, where="audit()", hint=hint
    )


def operator_of(function: Callable[..., Any], inputs: Sequence[Any], *, seed: int) -> Operator:
    """A function at its inputs, as an operator of the framework that recognises them.

    Raises:
        AmbiguousBackendError: none does, or more than one.
        BackendVersionError: none does, and one that is loaded is too old to be asked.
    """
    what = f"a {type(function).__name__} of {', '.join(type(x).__name__ for x in inputs) or 'nothing'}"
    hint = "give its inputs as tensors or arrays of the framework that differentiates it, for example jnp.asarray(x)"
    return _recognised(
        lambda backend: backend.operator(function, inputs, seed=seed), what, where="audit_operator()", hint=hint
    )


def _recognised(ask: Callable[[Backend], T | None], what: str, *, where: str, hint: str) -> T:
    """The answer of the one framework that recognises something; only those that are loaded are asked."""
    # frameworks first: NumPy takes what has a gradient written by hand
    loaded = [spec.name for spec in reversed(BACKENDS) if spec.package in sys.modules]
    found: dict[str, T] = {}
    unusable: BackendError | None = None
    for name in loaded:
        try:
            answer = ask(get(name))
        except BackendError as error:  # loaded, but too old: that matters only if nobody else knows the target
            unusable = error
            continue
        if answer is not None:
            found[name] = answer
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        msg = f"{what} may be of {' or '.join(sorted(found))}"
        alone = "give arrays of the framework that differentiates it, for example jnp.asarray(x)"
        raise AmbiguousBackendError(msg, where=where, hint=alone)
    if unusable is not None:
        raise unusable
    msg = f"cannot audit {what}: no framework that is loaded ({', '.join(sorted(loaded))}) recognises it"
    raise AmbiguousBackendError(msg, where=where, hint=hint)


def step_of(
    target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
) -> Model:
    """A training step of a target as a model, by the framework that recognises the target.

    Raises:
        AmbiguousBackendError: none does, or more than one.
        BackendVersionError: none does, and one that is loaded is too old to be asked.
    """
    what = f"a training step of a {type(target).__name__}"
    hint = "a torch.nn.Module, a pytree of JAX's arrays, a Keras model, or a dict of NumPy arrays"
    return _recognised(
        lambda backend: backend.step(target, step, loss=loss, sizes=sizes), what, where="audit_step()", hint=hint
    )


def _spec(name: str) -> BackendSpec:
    for spec in BACKENDS:
        if spec.name == name:
            return spec
    msg = f"unknown backend {name!r}"
    raise UnknownBackendError(msg, hint=f"one of {', '.join(names())}")


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not part[:1].isdigit():
            break
        numbers.append(int(digits))
    return tuple(numbers)
