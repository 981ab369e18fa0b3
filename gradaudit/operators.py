"""An operator, a function of arrays with any outputs: each way of differentiating it is audited as a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.auditor import Progress, audit_each
from gradaudit.compare import worst
from gradaudit.direction import random_direction
from gradaudit.errors import NotOfferedError, OptionError
from gradaudit.measure.around import Around
from gradaudit.measure.plan import scales
from gradaudit.measure.state import preserved
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model, Operator, SupportsJvp, SupportsTwin
from gradaudit.report import AuditReport

__all__ = ["MODES", "audit_operator"]

#: The ways of differentiating an operator, in the order of the report.
MODES = ("reverse", "forward", "second", "batched")
#: Up to so many entries are differentiated one by one in forward mode, more along random directions.
_ENTRIES = 64
_DIRECTIONS = 4
_STRIDE = 7_919


def audit_operator(
    operator: Operator,
    options: AuditOptions,
    *,
    modes: Collection[str] | None,
    target: str,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit each way of differentiating an operator that it offers, or those in ``modes``.

    Raises:
        OptionError: an unknown mode, or one that was asked for and is not offered.
    """
    unknown = set(modes or ()) - set(MODES)
    if unknown or (modes is not None and not modes):
        msg = f"there is no mode {', '.join(sorted(unknown)) or 'to audit'}"
        raise OptionError(msg, where="modes", hint=f"some of {', '.join(MODES)}")
    models: dict[str, Model] = {}
    remarks = list(operator.remarks())
    for mode in MODES if modes is None else [mode for mode in MODES if mode in modes]:
        try:
            models[mode] = _model(operator, mode)
        except NotOfferedError as error:
            if modes is not None:
                raise OptionError(error.fact, where=f"modes={mode!r}", hint=f"leave {mode!r} out") from error
            remarks.append(f"Not offered: {mode} ({error.fact}).")
    # the second derivative of what is linear or stepwise is zero everywhere
    parts = audit_each(models, options, progress=progress, may_be_constant=True)
    return AuditReport(
        verdict=worst(part.verdict for part in parts),
        target=target,
        parts=parts,
        evaluations=sum(part.evaluations for part in parts),
        gradients=sum(part.gradients for part in parts),
        seconds=sum(part.seconds for part in parts),
        options=options,
        complete=all(part.complete for part in parts),
        remarks=tuple(remarks),
    )


def _model(operator: Operator, mode: str) -> Model:
    if mode == "second":
        return operator.second()
    if mode == "batched":
        return operator.batched()
    model = operator.reverse()
    return model if mode == "reverse" else _forward(model)


def _forward(model: Model) -> Model:
    """The same loss, differentiated by forward mode.

    Raises:
        NotOfferedError: there is none.
    """
    if not isinstance(model, SupportsJvp):
        msg = f"a {type(model).__name__} has no forward mode"
        raise NotOfferedError(msg, where="forward")
    parameters = model.parameters()
    try:
        with preserved(model):
            model.jvp(parameters, {name: np.zeros_like(p) for name, p in parameters.items()})
    except Exception as error:
        # frameworks say in many ways that an operation has no forward rule
        fact = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotOfferedError(fact, where="forward") from error
    few = sum(p.size for p in parameters.values()) <= _ENTRIES
    return _ByEntries(model) if few else _ByDirections(model)


class _Forward(Around):
    """A model around another, differentiated by its forward mode."""

    def twin(self) -> Model | None:
        twin = self._model.twin() if isinstance(self._model, SupportsTwin) else None
        return self._wrapped(twin if isinstance(twin, SupportsJvp) else None)

    def _jvp(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        assert isinstance(self._model, SupportsJvp)  # see _forward and twin
        return self._model.jvp(parameters, tangents)


@final
class _ByEntries(_Forward):
    """Entry by entry."""

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        gradients: dict[str, Array | None] = {}
        for name, p in parameters.items():
            gradient = np.zeros(p.shape, p.dtype)
            for index in np.ndindex(p.shape):
                tangents = {n: np.zeros(q.shape, q.dtype) for n, q in parameters.items()}
                tangents[name][index] = 1
                gradient[index] = self._jvp(parameters, tangents)
            gradients[name] = gradient
        return self.loss(parameters), gradients


@final
class _ByDirections(_Forward):
    """Along random directions V of each input: the parameters are coefficients t, the inputs x + V t."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._base = model.parameters()
        self._directions = {
            name: [self._drawn(name, scale, i) for i in range(_DIRECTIONS)]
            for name, scale in scales(self._base).items()
        }

    def _drawn(self, name: str, scale: float | Array, i: int) -> Array:
        block = random_direction(name, {name: scale}, _STRIDE + i).block(name, self._base[name].shape)
        assert block is not None  # it is in the support
        return block

    def parameters(self) -> NamedArrays:
        return {name: np.zeros(_DIRECTIONS, self._base[name].dtype) for name in self._directions}

    def loss(self, parameters: NamedArrays) -> Scalar:
        return self._model.loss(self._inputs(parameters))

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        inputs = self._inputs(parameters)
        gradients: dict[str, Array | None] = {}
        for name, t in parameters.items():
            along = [self._jvp(inputs, self._tangents(name, i)) for i in range(_DIRECTIONS)]
            gradients[name] = np.array(along, t.dtype)
        return self._model.loss(inputs), gradients

    def _inputs(self, coefficients: NamedArrays) -> NamedArrays:
        moved = dict(self._base)
        for name, directions in self._directions.items():
            p, steps = self._base[name], zip(np.asarray(coefficients[name], np.float64), directions, strict=True)
            moved[name] = (p + sum(t * v for t, v in steps)).astype(p.dtype)
        return moved

    def _tangents(self, name: str, i: int) -> Mapping[str, Any]:
        return {
            n: np.asarray(self._directions[n][i], p.dtype) if n == name else np.zeros(p.shape, p.dtype)
            for n, p in self._base.items()
        }

    def cuts(self) -> tuple[()]:
        """None: the coefficients are nobody's."""
        return ()

    rules = cuts

    def origin(self) -> None:
        """None, as `cuts`."""
