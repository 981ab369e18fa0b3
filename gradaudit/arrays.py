"""Named arrays: how parameters and gradients cross the border between a framework and the auditor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gradaudit.errors import ModelContractError

__all__ = [
    "Array",
    "Gradients",
    "NamedArrays",
    "ParameterSpec",
    "Scalar",
    "as_scalar",
    "check_gradients",
    "check_parameters",
    "eps",
    "frozen_copy",
    "global_norm",
    "specs",
]

#: Types in a container, in a message.
_MOST_SHOWN = 4

Array: TypeAlias = NDArray[Any]
Scalar: TypeAlias = np.floating[Any]
NamedArrays: TypeAlias = Mapping[str, Array]
#: A missing gradient is None, never zeros: the two have different causes.
Gradients: TypeAlias = Mapping[str, Array | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSpec:
    """Name, shape and dtype of one parameter tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))


def specs(arrays: NamedArrays) -> tuple[ParameterSpec, ...]:
    """The specs of all tensors, in the order of the mapping."""
    return tuple(ParameterSpec(name=n, shape=tuple(a.shape), dtype=str(a.dtype)) for n, a in arrays.items())


def eps(dtype: Any) -> float:
    """Machine epsilon of a floating dtype: the distance from 1 to the next number."""
    return float(np.finfo(np.dtype(dtype)).eps)


def global_norm(arrays: Gradients) -> float:
    """Euclidean norm over all entries of all tensors, in float64; a missing tensor counts as zero."""
    present = (np.asarray(a, np.float64).ravel() for a in arrays.values() if a is not None)
    return float(np.sqrt(sum(float(a @ a) for a in present)))


def frozen_copy(arrays: NamedArrays) -> dict[str, Array]:
    """Copies that cannot be written: what the auditor keeps is out of everybody's reach."""
    copies = {name: np.array(array) for name, array in arrays.items()}
    for copy in copies.values():
        copy.flags.writeable = False
    return copies


def as_scalar(value: Any, where: str) -> Scalar:
    """The loss as a NumPy scalar of its own dtype.

    Raises:
        ModelContractError: the value is not one real floating-point number.
    """
    if value is None or isinstance(value, (tuple, list, dict)):
        found, hint = ("None", "return the loss") if value is None else _described(value)
        msg = f"the loss is {found}, but it must be one number"
        raise ModelContractError(msg, where=where, hint=hint)
    array = np.asarray(value)
    if array.shape != ():
        msg = f"the loss has shape {array.shape}, but it must be one number"
        raise ModelContractError(msg, where=where, hint="reduce it, for example loss.mean() or loss.sum()")
    if not np.issubdtype(array.dtype, np.floating):
        msg = f"the loss has dtype {array.dtype}, but it must be a real floating-point number"
        raise ModelContractError(msg, where=where, hint="return a float, for example loss * 1.0")
    scalar: Scalar = array.dtype.type(array)
    return scalar


def _described(value: Any) -> tuple[str, str]:
    """A container in place of the loss: what it is and holds, and what to return."""
    items = list(value.values() if isinstance(value, dict) else value)
    types = [type(item).__name__ for item in items[:_MOST_SHOWN]] + ["..."] * (len(items) > _MOST_SHOWN)
    found = f"a {type(value).__name__} of {len(items)} ({', '.join(types)})"
    if not items:
        return found, "return the loss"
    which = f"entry {next(iter(value))!r}" if isinstance(value, dict) else "the first"
    return found, f"return the loss alone: if it is {which}, that only"


def check_parameters(parameters: NamedArrays) -> None:
    """Refuse parameters that have no derivative: none at all, none with entries, or not floating-point.

    Raises:
        ModelContractError: names the tensor, its shape or dtype, and the remedy.
    """
    if not parameters:
        msg = "the model has no parameters, so there is no gradient to audit"
        raise ModelContractError(msg, where="parameters()", hint="return a dict of name to floating-point array")
    if not any(array.size for array in parameters.values()):
        shapes = ", ".join(f"{name!r} has shape {tuple(array.shape)}" for name, array in parameters.items())
        msg = f"no parameter has entries, so there is no gradient to audit: {shapes}"
        raise ModelContractError(msg, where="parameters()", hint="give one of them entries")
    for name, array in parameters.items():
        if not np.issubdtype(array.dtype, np.floating):
            msg = f"parameter {name!r} has dtype {array.dtype}; only real floating-point tensors have a gradient"
            hint = f"close over {name!r} as data instead, or convert it: {name}.astype('float64')"
            raise ModelContractError(msg, where="parameters()", hint=hint)


def check_gradients(parameters: NamedArrays, gradients: Gradients) -> None:
    """Refuse gradients that do not match their parameters in name, shape or dtype.

    Raises:
        ModelContractError: names the tensor and what differs.
    """
    where = "value_and_grad()"
    absent = [name for name in parameters if name not in gradients]
    extra = [name for name in gradients if name not in parameters]
    if absent or extra:
        msg = f"parameters are {sorted(parameters)}, but gradients are {sorted(gradients)}"
        hint = f"return one gradient per parameter (None where there is none); absent: {absent}, unknown: {extra}"
        raise ModelContractError(msg, where=where, hint=hint)
    for name, gradient in gradients.items():
        parameter = parameters[name]
        if gradient is None:
            continue
        if gradient.shape != parameter.shape:
            msg = f"parameter {name!r} has shape {tuple(parameter.shape)}, its gradient {tuple(gradient.shape)}"
            raise ModelContractError(msg, where=where, hint="return each gradient in the shape of its parameter")
        if gradient.dtype != parameter.dtype:
            msg = f"parameter {name!r} has dtype {parameter.dtype}, its gradient {gradient.dtype}"
            hint = f"return the gradient as {parameter.dtype}, or hold the parameter in {gradient.dtype}"
            raise ModelContractError(msg, where=where, hint=hint)
