"""What the operators of all backends share: names of inputs, cotangents, a model whose gradient comes another way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.direction import Point
from gradaudit.protocols import FrameworkModel, SupportsTwin

__all__ = ["Gradient", "WithGradient", "cotangent", "named", "offset"]

#: A sum below this share of the size of its terms has nearly cancelled.
_CANCELLED = 0.1

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

    Every entry counts: U(0.5, 1.5) with a random sign, over the output's rms, so that no output drowns another. For a
    complex output both parts are drawn.

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
    return np.asarray(weight / size if size > 0 else weight)


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
class WithGradient:
    """A model whose gradient is taken another way.

    Args:
        model: for all else.
        gradient: also at float64 parameters, for the twin's.
    """

    def __init__(self, model: FrameworkModel, gradient: Gradient) -> None:
        self._model = model
        self._gradient = gradient

    def parameters(self) -> NamedArrays:
        """The base point."""
        return self._model.parameters()

    def loss(self, parameters: NamedArrays) -> Scalar:
        """The loss."""
        return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The loss, and the gradient taken another way."""
        return self._gradient(parameters)

    @property
    def point_bytes(self) -> int:
        """Working memory of one more point, in bytes."""
        return self._model.point_bytes

    def along(self, points: Sequence[Point]) -> Array:
        """The losses at K points, (K,)."""
        return self._model.along(points)

    def twin(self) -> WithGradient | None:
        """The same in float64."""
        twin = self._model.twin() if isinstance(self._model, SupportsTwin) else None
        return None if twin is None else WithGradient(twin, self._gradient)  # type: ignore[arg-type]  # of its own kind

    def preserved(self) -> AbstractContextManager[None]:
        """The framework's state."""
        return self._model.preserved()

    def environment(self) -> Mapping[str, str]:
        """The framework's version."""
        return self._model.environment()
