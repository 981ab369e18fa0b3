"""Ports of one model: with the same parameters, are they the same function? If not, what would make them so?

Losses and gradients are those of float64 twins where there are twins. The gradient of a port is mapped back onto the
first model's parameters. Where a port is another function, its parameters are handed over in other arrangements, one
after another, until loss and gradient agree: that is proof of what differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, global_norm
from gradaudit.compare import Precision, Verdict
from gradaudit.conventions import gate_names
from gradaudit.errors import OptionError
from gradaudit.mapping import Correspondence, corresponding
from gradaudit.measure.sources import choose, rounds_inside
from gradaudit.measure.state import preserved
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model, SupportsAt, SupportsTwin
from gradaudit.rearrangements import Blocks, Rearrangement, rearrangements
from gradaudit.report import AuditReport, Port

__all__ = ["Handed", "compared", "handed"]

#: Rearrangements that are tried, at most.
_MOST = 2000
#: A tensor whose gradient is this small beside the whole one may be zero; so many eps of the whole are its rounding.
_NEGLIGIBLE, _WHOLE = 1e-4, 64.0
_LISTED = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Handed:
    """A model at the parameters of the first.

    Attributes:
        model: whose base point they are.
        correspondence: how they were made.
        first: the first model's parameters.
    """

    model: Model
    correspondence: Correspondence
    first: NamedArrays


def handed(name: str, model: Model, correspondence: Correspondence, first: NamedArrays) -> Handed:
    """The model with the first one's parameters, in its own dtypes.

    Raises:
        OptionError: a parameter of the first model, other than zero, that the port does not use.
    """
    for source, where in correspondence.unused().items():
        n_left = int(np.count_nonzero(where & (first[source] != 0)))
        if n_left:
            msg = f"{n_left} of {where.size} entries of {source!r}, which are not zero, are in no parameter of {name!r}"
            hint = f"use {source!r} in a recipe, or set it to zero in the first model"
            raise OptionError(msg, where=f"mapping[{name!r}]", hint=hint)
    exact = correspondence.apply(first)
    values = {n: exact[n].astype(p.dtype) for n, p in model.parameters().items()}
    if all(np.array_equal(values[n], p) for n, p in model.parameters().items()):
        moved = model
    else:
        moved = model.at(values) if isinstance(model, SupportsAt) else _Moved(model, values)
    return Handed(model=moved, correspondence=correspondence, first=first)


@final
class _Moved:
    """A model that has a loss at other parameters than its own."""

    def __init__(self, model: Model, parameters: NamedArrays) -> None:
        self._model = model
        self._parameters = parameters

    def parameters(self) -> NamedArrays:
        return self._parameters

    def loss(self, parameters: NamedArrays) -> Scalar:
        return self._model.loss(parameters)

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        return self._model.value_and_grad(parameters)

    def twin(self) -> Model | None:
        twin = self._model.twin() if isinstance(self._model, SupportsTwin) else None
        if twin is None:
            return None
        return _Moved(twin, {n: self._parameters[n].astype(p.dtype) for n, p in twin.parameters().items()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Computed:
    """Loss and gradient of a model, as exactly as it computes.

    Attributes:
        handed: the model.
        source: its twin, or itself.
        eps: of what it computes in.
        values: the port's parameters.
        loss: there.
        gradients: by the first model's parameters, float64.
        compared: which entries of the first model's parameters the port has, 0 or 1.
    """

    handed: Handed
    source: Model
    eps: float
    values: NamedArrays
    loss: float
    gradients: NamedArrays
    compared: NamedArrays


def compared(models: Mapping[str, Handed], parts: Mapping[str, AuditReport], options: AuditOptions) -> tuple[Port, ...]:
    """Each port against the first model.

    Args:
        models: the first model, then its ports.
        parts: their own audits: whether each gradient is the derivative of its loss.
        options: seed and max_evaluations are used.
    """
    computed = {name: _computed(model, options) for name, model in models.items()}
    (first_name, first), *others = computed.items()
    wrong = {name for name, part in parts.items() if part.verdict is Verdict.DISAGREE}
    found = [_port(name, port, (first_name, first), wrong, options) for name, port in others]
    alone = len(others) > 1 and all(
        port.verdict is Verdict.DISAGREE and _Gap(others[0][1], other).agrees
        for port, (_, other) in zip(found, others, strict=True)
    )
    sentence = f"The others agree with one another: {first_name} is the one that differs." if alone else ""
    verdict = Verdict.DISAGREE if alone else Verdict.AGREE
    itself = Port(
        name=first_name,
        loss=first.loss,
        loss_difference=0.0,
        gradient_difference=0.0,
        verdict=verdict,
        sentence=sentence,
    )
    return (itself, *found)


def _computed(model: Handed, options: AuditOptions) -> _Computed:
    native, budget = model.model, Budget(options.max_evaluations)
    with preserved(native):
        loss, gradients = native.value_and_grad(native.parameters())
    with preserved(native):
        source = choose(native, loss, gradients, budget, seed=options.seed)
        single = source.dtype != "float64" or (
            source.reference is not None and rounds_inside(source, budget, options.seed)
        )
    exact = model.correspondence.apply(model.first)
    values = {n: exact[n].astype(p.dtype) for n, p in source.model.parameters().items()}
    with preserved(native):
        loss, gradients = source.model.value_and_grad(values)
    left = model.correspondence.unused()
    return _Computed(
        handed=model,
        source=source.model,
        eps=float(np.finfo(np.float32 if single else np.float64).eps),
        values=values,
        loss=float(loss),
        gradients=_back(model.correspondence, gradients),
        compared={n: 1.0 - left.get(n, np.zeros(p.shape)) for n, p in model.first.items()},
    )


def _back(correspondence: Correspondence, gradients: Gradients) -> dict[str, Array]:
    back = correspondence.adjoint(gradients)
    return {n: np.zeros(correspondence.shapes[n]) if g is None else g for n, g in back.items()}


@final
class _Gap:
    """The difference of two models, and what rounding accounts for."""

    def __init__(self, first: _Computed, port: _Computed) -> None:
        eps = max(first.eps, port.eps)
        self._tolerance = Precision(analytic=eps, numeric=eps).tolerance
        parameters = first.handed.first
        size = global_norm({n: g * np.asarray(parameters[n], np.float64) for n, g in first.gradients.items()})
        gap = abs(port.loss - first.loss)
        self.loss = 0.0 if gap == 0 else gap / abs(first.loss) if first.loss else float("inf")
        self.losses_agree = gap <= self._tolerance * max(abs(first.loss), size)
        shared = {n: first.compared[n] * port.compared[n] for n in first.gradients}
        own, theirs = ({n: shared[n] * g for n, g in c.gradients.items()} for c in (first, port))
        whole = global_norm(own)
        apart = {n: global_norm({n: theirs[n] - g}) for n, g in own.items()}
        sizes = {n: max(global_norm({n: g}), _NEGLIGIBLE * whole) for n, g in own.items()}
        rounding = _WHOLE * eps * whole
        self.tensors = {n: d / sizes[n] if sizes[n] > 0 else (float("inf") if d > 0 else 0.0) for n, d in apart.items()}
        self.different = [n for n in apart if not apart[n] <= self._tolerance * sizes[n] + rounding]
        self.different.sort(key=lambda n: -self.tensors[n])

    @property
    def gradient(self) -> float:
        """The largest relative difference of a tensor."""
        return max(self.tensors.values(), default=0.0)

    @property
    def agrees(self) -> bool:
        return self.losses_agree and not self.different

    def resolved(self, significant: float | None) -> bool:
        """Whether a difference that matters would have been seen."""
        return significant is None or self._tolerance <= significant


def _port(name: str, port: _Computed, reference: tuple[str, _Computed], wrong: set[str], options: AuditOptions) -> Port:
    first_name, first = reference
    gap = _Gap(first, port)
    unjudged = wrong & {name, first_name}
    sentence = evidence = confidence = ""
    if gap.agrees:
        verdict = Verdict.AGREE if gap.resolved(options.significant) else Verdict.INCONCLUSIVE
    elif gap.losses_agree and unjudged:
        # the gradients do not belong to the losses: they tell nothing of the functions
        verdict = Verdict.INCONCLUSIVE
        sentence = f"The losses agree; the gradients differ, and that of {' and '.join(sorted(unjudged))} is wrong."
    else:
        verdict = Verdict.DISAGREE
        sentence = _difference(name, port, reference, gap, derivative=not unjudged)
        fitting, n_tried = _fitting(first, port, gradients=not unjudged, options=options)
        confidence = "unexplained" if fitting is None else "consistent" if unjudged else "proven"
        evidence = f"None of {n_tried} other arrangements of its parameters makes them agree."
        if fitting is not None:
            agreed = "losses agree" if unjudged else "losses and gradients agree"
            evidence = f"{_words(fitting, port.handed)}, {agreed}: {name} reads them so, or its mapping is wrong."
    return Port(
        name=name,
        loss=port.loss,
        loss_difference=gap.loss,
        gradient_difference=gap.gradient,
        verdict=verdict,
        sentence=sentence,
        evidence=evidence,
        confidence=confidence,
    )


def _difference(name: str, port: _Computed, reference: tuple[str, _Computed], gap: _Gap, *, derivative: bool) -> str:
    first_name, first = reference
    own = " Each gradient is the derivative of its own loss." if derivative else ""
    if not gap.losses_agree:
        digits = 6 if gap.loss > 1e-4 else 12  # so many that they differ
        losses = f"{port.loss:.{digits}g} against {first.loss:.{digits}g}"
        return f"{name} is another function than {first_name}: at the same parameters the losses are {losses}.{own}"
    tensors = ", ".join(f"{n} by {gap.tensors[n]:.2g}" for n in gap.different[:_LISTED])
    return f"{name} is another function than {first_name}: the losses agree, but gradients differ ({tensors}).{own}"


def _fitting(
    first: _Computed, port: _Computed, *, gradients: bool, options: AuditOptions
) -> tuple[Rearrangement | None, int]:
    """The first rearrangement of the port's parameters with which it agrees, and how many were tried."""
    shapes = {n: p.shape for n, p in port.values.items()}
    budget, n_tried = Budget(options.max_evaluations), 0
    for candidate in itertools.islice(rearrangements(shapes), _MOST):
        try:
            budget.take(1, "port")
        except Stop:
            break
        n_tried += 1
        if _fits(candidate, first, port, gradients=gradients):
            return candidate, n_tried
    return None, n_tried


def _fits(candidate: Rearrangement, first: _Computed, port: _Computed, *, gradients: bool) -> bool:
    values = candidate.apply(port.values)
    native = port.handed.model
    with preserved(native), np.errstate(all="ignore"):
        loss = float(port.source.loss(values))
    there = _at(port, values, loss, port.gradients)
    if not _Gap(first, there).losses_agree:
        return False
    if not gradients:
        return True
    with preserved(native):
        _, found = port.source.value_and_grad(values)
    moved = corresponding(candidate.apply, port.values, port.values, name="port").adjoint(found)
    return _Gap(first, _at(port, values, loss, _back(port.handed.correspondence, moved))).agrees


def _at(port: _Computed, values: NamedArrays, loss: float, gradients: NamedArrays) -> _Computed:
    return _Computed(
        handed=port.handed,
        source=port.source,
        eps=port.eps,
        values=values,
        loss=loss,
        gradients=gradients,
        compared=port.compared,
    )


def _words(fitting: Rearrangement, port: Handed) -> str:
    """What was rearranged, gates by their names where the first model's parameters have any."""
    *most, last = fitting.tensors
    tensors = f"{', '.join(most)} and {last}" if most else last
    gates = None if fitting.blocks is None else _gates(fitting.blocks, port.correspondence)
    if gates is None or fitting.blocks is None:
        return f"With {tensors} {fitting.words}"
    read = ", ".join(gates[k] for k in fitting.blocks.order)
    return f"With the gates {', '.join(gates)} of {tensors} read as {read}"


def _gates(blocks: Blocks, correspondence: Correspondence) -> str | None:
    """The gates of a port's blocks, in its order: found out from the first model's parameters that are there."""
    n_blocks = len(blocks.order)
    for target, axis in blocks.axes.items():
        for source, part in correspondence.parts[target].items():
            known = gate_names(source, n_blocks)
            if known is None:
                continue
            gates, source_axis = known
            starts = [np.split(part.index, n_blocks, axis=axis)[k].flat[0] for k in range(n_blocks)]
            shape = correspondence.shapes[source]
            places = [np.unravel_index(start, shape)[source_axis] * n_blocks // shape[source_axis] for start in starts]
            return "".join(gates[place] for place in places)
    return None
