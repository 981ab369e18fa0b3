"""What the operators of all backends share: names of inputs, cotangents, a model whose gradient comes another way."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.backends.over import OverModel
from gradaudit.protocols import FrameworkModel

__all__ = [
    "IMAGINARY",
    "REAL",
    "Gradient",
    "WithGradient",
    "apart",
    "cotangent",
    "in_short",
    "named",
    "of_output",
    "offset",
]

#: What the parameters of a complex input are called after it.
REAL, IMAGINARY = ".real", ".imag"
#: A sum below this share of the size of its terms has nearly cancelled.
_CANCELLED = 0.1
#: How the error itself stands below such a traceback.
_RAISED = re.compile(r" {4}\w+: ")

#: parameters -> (loss, gradients)
Gradient = Callable[[NamedArrays], tuple[Scalar, Gradients]]


def named(function: Callable[..., Any], inputs: Sequence[Any]) -> dict[str, Any]:
    """The inputs by the function's own names for them where it has them, else as ``input 0``, ``input 1``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # built-in functions have no signature
        parameters = []
    own = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = own if len(own) >= len(inputs) else [f"input {i}" for i in range(len(inputs))]
    return dict(zip(names, inputs, strict=False))


def cotangent(output: Array, i: int, seed: int) -> Array:
    """What the i-th output is multiplied with before all is added up: the same on every backend.

    Every entry counts: U(0.5, 1.5) with a random sign, over the output's rms, so that no output drowns another; what
    has lost digits at the small end of its format is not enlarged, which might not be finite. For a complex output
    both parts are drawn.

    Args:
        output: at the base point, real or complex.
        i: which output.
        seed: of the audit.
    """
    rng = np.random.default_rng([seed, i, 5])
    parts = 2 if np.iscomplexobj(output) else 1
    drawn = [rng.uniform(0.5, 1.5, output.shape) * rng.choice([-1.0, 1.0], output.shape) for _ in range(parts)]
    finite = np.abs(output[np.isfinite(output)].astype(np.complex128))
    size = float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
    weight = drawn[0] if parts == 1 else drawn[0] + 1j * drawn[1]
    digits = np.float64 if output.dtype in (np.float64, np.complex128) else np.float32
    return np.asarray(weight / size if size >= np.finfo(digits).tiny else weight)


def of_output(i: int) -> str:
    """The name of the cotangent of the i-th output, where it is a parameter."""
    return f"cotangent of output {i}"


def apart(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Complex arrays as two, their real and imaginary parts."""
    parts: dict[str, Array] = {}
    for name, x in arrays.items():
        parts |= {name + REAL: np.real(x), name + IMAGINARY: np.imag(x)} if np.iscomplexobj(x) else {name: x}
    return parts


def in_short(error: Exception) -> str:
    """What an error says, in short; below the traceback that a `tf.function` writes into it."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return next((line.strip() for line in lines if _RAISED.match(line)), lines[0])


def offset(pairs: Sequence[tuple[Array, Array]]) -> float:
    """What is added to the sum of products where it nearly cancels: the size of its terms.

    A small sum has the rounding of its large terms, which looks like noise beside it.

    Args:
        pairs: outputs at the base point and their cotangents.
    """
    terms = [np.real(y * np.conj(c))[np.isfinite(y)] for y, c in pairs]
    total = abs(float(sum(t.sum() for t in terms)))
    size = float(np.sqrt(sum(np.square(t).sum() for t in terms)))
    return size if total < _CANCELLED * size else 0.0


@final
class WithGradient(OverModel):
    """A model whose gradient is taken another way.

    Args:
        model: for all else.
        gradient: also at float64 parameters, for the twin's.
    """

    def __init__(self, model: FrameworkModel, gradient: Gradient) -> None:
        super().__init__(model)
        self._gradient = gradient

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss, and the gradient taken another way."""
        return self._gradient(parameters)

    def twin(self) -> WithGradient | None:
        """The same in float64."""
        twin = super().twin()
        return None if twin is None else WithGradient(twin, self._gradient)  # type: ignore[arg-type]  # of its own kind
