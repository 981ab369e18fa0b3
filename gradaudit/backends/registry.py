"""Which backends there are, which are installed, and how to get one; a framework is imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, cast

from gradaudit.errors import (
    AmbiguousBackendError,
    BackendError,
    BackendNotInstalledError,
    BackendVersionError,
    UnknownBackendError,
)
from gradaudit.protocols import Backend, Model, SupportsTrainingSteps

__all__ = ["BACKENDS", "BackendSpec", "get", "installed_version", "model_of", "names", "step_of"]


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
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


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
    # frameworks first: NumPy takes what has a gradient written by hand
    loaded = [spec.name for spec in reversed(BACKENDS) if spec.package in sys.modules]
    found: dict[str, Model] = {}
    unusable: BackendError | None = None
    for name in loaded:
        try:
            model = get(name).adapt(target, at, loss=loss, gradient=gradient)
        except BackendError as error:  # loaded, but too old: that matters only if nobody else knows the target
            unusable = error
            continue
        if model is not None:
            found[name] = model
    if len(found) == 1:
        return next(iter(found.values()))
    what = f"a {type(target).__name__}" + ("" if at is None else f" at a {type(at).__name__}")
    if found:
        msg = f"{what} may be of {' or '.join(sorted(found))}"
        hint = "give `at` as arrays of the framework that differentiates it, for example jnp.asarray(x)"
        raise AmbiguousBackendError(msg, where="audit()", hint=hint)
    if unusable is not None:
        raise unusable
    msg = f"cannot audit {what}: no framework that is loaded ({', '.join(sorted(loaded))}) recognises it"
    hint = (
        "a module with loss=..., a function with its parameters as `at` (and gradient=... where they are NumPy "
        "arrays), or an object with parameters(), loss(p) and value_and_grad(p)"
    )
    raise AmbiguousBackendError(msg, where="audit()", hint=hint)


def step_of(
    target: Any, step: Callable[..., Any], *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
) -> Model:
    """A training step as a model, by the loaded framework that can run it.

    Raises:
        AmbiguousBackendError: none can.
    """
    for spec in reversed(BACKENDS):
        backend = get(spec.name) if spec.package in sys.modules else None
        if isinstance(backend, SupportsTrainingSteps):
            model = backend.step(target, step, loss=loss, sizes=sizes)
            if model is not None:
                return model
    msg = f"cannot run a training step of a {type(target).__name__}"
    hint = "a torch.nn.Module; elsewhere, audit(target, at, gradient=...) with the gradient that the step returns"
    raise AmbiguousBackendError(msg, where="audit_step()", hint=hint)


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
