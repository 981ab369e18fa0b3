"""Identify truncation in a black box: which semantics, and how far back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gradaudit.arrays import Array, NamedArrays, eps
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.lens.hypotheses import Rows, truncation
from gradaudit.lens.influence import by_influence
from gradaudit.lens.probe import Probe
from gradaudit.lens.step_losses import by_step_losses, hypotheses, unnoticed
from gradaudit.measure.baseline import gradient_of
from gradaudit.measure.sources import choose
from gradaudit.measure.state import preserved
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.protocols import Model, SupportsSteps
from gradaudit.recurrent import Truncation
from gradaudit.render.to_text import number

__all__ = ["Identified", "Losses", "Status", "StepLosses", "identify"]

StepLosses = Callable[[NamedArrays], Array]
#: Which steps have a loss: a word, or their numbers, from 1 to T.
Losses = Literal["all", "last"] | Sequence[int] | None
Status = Literal["truncated", "not truncated", "none of these", "cannot tell"]
#: Up to so many steps each pair of a loss and an input is looked at, in 6 T losses.
_MOST_STEPS = 500
_LEAST_STEPS = 3
#: So many truncations are written out.
_SHOWN = 4
#: All inputs are moved by so much of their size to see what the step losses are of.
_MOVED = 0.1
#: What step losses and the loss may differ by, in units of their rounding, and of how far they move.
_ROUNDINGS, _SAME = 1e3, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """What a gradient by time says of its truncation.

    Attributes:
        status: ``truncated``; ``not truncated``: the gradient is right at all steps; ``none of these``: it is wrong,
            and not as any of tail, window, chunks and tbptt would make it; ``cannot tell``.
        hypotheses: the truncations that fit. Two of them can keep the same pairs, as window(1) and chunks(1) do; with
            a loss at the last step only all that fit do the same.
        n_steps: T.
        losses: which steps have a loss, where that is known: ``all``, ``last`` or ``some``.
        unnoticed: of what is not truncated: a window of so many steps, or more, would look the same.
        evaluations: losses that were computed.
        gradients: gradients that were.
        why: in words, where nothing fits or nothing can be told.
    """

    status: Status
    hypotheses: tuple[Truncation, ...]
    n_steps: int
    losses: Literal["all", "last", "some"] | None = None
    unnoticed: int | None = None
    evaluations: int
    gradients: int
    why: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that fit: tail, window, chunks, tbptt."""
        return tuple(dict.fromkeys(t.kind for t in self.hypotheses))

    @property
    def truncation(self) -> Truncation | None:
        """The one truncation that fits, if all that do keep the same pairs; the simplest name of it."""
        same = {tuple(t.reach(self.n_steps).tolist()) for t in self.hypotheses}
        return self.hypotheses[0] if len(same) == 1 else None

    @property
    def covered(self) -> int | None:
        """How many last steps are differentiated for all their losses, if all that fit say the same."""
        if self.status == "not truncated":
            return self.n_steps
        found = {int((t.reach(self.n_steps) == self.n_steps).sum()) for t in self.hypotheses}
        return found.pop() if len(found) == 1 else None

    def __str__(self) -> str:
        if self.status == "not truncated":
            beyond = f" A window of {self.unnoticed:,} steps, or more, would look the same." if self.unnoticed else ""
            return f"Not truncated: the gradient is right at all {self.n_steps:,} steps.{beyond}"
        if self.status != "truncated":
            taken = " Every step is taken to have a loss." if self.status == "none of these" and not self.losses else ""
            return f"{self.status.capitalize()}: {self.why}.{taken}"
        listed = [str(t) for t in self.hypotheses[:_SHOWN]]
        more = len(self.hypotheses) - len(listed)
        names = ", ".join(listed) + (f" and {more:,} more" if more else "")
        of = f" of {self.n_steps:,}" if self.covered is not None else ""
        if self.losses == "last" and self.covered is not None:
            return (
                f"Truncated: the last {self.covered:,}{of} steps are differentiated. As only the last step has a loss, "
                f"all these are the same: {names}."
            )
        if self.truncation is None:
            return f"Truncated, as one of these would do it, which cannot be told apart here: {names}."
        rest = f", the same here as {', '.join(listed[1:])}" if len(listed) > 1 else ""
        last = " (if only the last step has a loss: any truncation that covers as many)"
        every = " (if every step has a loss)"
        unsure = {"tail": last, "tbptt": every}.get(self.truncation.kind, "") if self.losses is None else ""
        return f"Truncated: {self.truncation}{rest}, over {self.n_steps:,} steps{unsure}."


def identify(
    model: Model,
    *,
    inputs: str = "x",
    axis: int = 0,
    step_losses: StepLosses | None = None,
    batched: bool = False,
    losses: Losses = None,
    seed: int = 0,
    max_evaluations: int = 20_000,
) -> Identified:
    """See `gradaudit.identify_truncation`, with a model.

    Raises:
        OptionError: there is no such tensor, axis, word or step, or it has fewer than three steps.
        ModelContractError: the model breaks its contract, or the step losses do not add up to its loss.
    """
    known = _known(losses, _check(model, inputs, axis))
    with preserved(model):
        return _identify(model, inputs, axis, step_losses, known, Budget(max_evaluations), batched=batched, seed=seed)


def _identify(
    model: Model,
    inputs: str,
    axis: int,
    step_losses: StepLosses | None,
    losses: Rows | None,
    budget: Budget,
    *,
    batched: bool,
    seed: int,
) -> Identified:
    loss, gradients = gradient_of(model, budget)
    source = choose(model, loss, gradients, budget, seed=seed)
    probe = Probe(model, source.model, source.digits, inputs, axis, budget, seed=seed)
    if step_losses is None and isinstance(source.model, SupportsSteps):
        step_losses = source.model.step_losses
    try:
        if step_losses is not None and probe.n_steps <= _MOST_STEPS:
            together = step_losses if batched else _one_by_one(step_losses, inputs)
            return _by_step_losses(probe, source.model.parameters(), together)
        return _by_influence(probe, losses)
    except Stop:
        why = f"max_evaluations = {budget.max_evaluations:,} is too few"
        return _result(probe, "cannot tell", why=why)


def _one_by_one(step_losses: StepLosses, name: str) -> StepLosses:
    """With the copies of the inputs on a leading axis."""
    return lambda parameters: np.stack([step_losses({**parameters, name: x}) for x in parameters[name]])


def _check(model: Model, inputs: str, axis: int) -> int:
    """T."""
    parameters = model.parameters()
    if inputs not in parameters:
        msg = f"there is no {inputs!r} among {', '.join(parameters)}"
        raise OptionError(msg, where="inputs", hint="pass the inputs among what is differentiated, and their name")
    shape = parameters[inputs].shape
    if not 0 <= axis < len(shape) or shape[axis] < _LEAST_STEPS:
        msg = f"{inputs!r} has shape {shape}: no axis {axis} of at least {_LEAST_STEPS} steps"
        raise OptionError(msg, where="axis", hint="the axis of time, 0 for (T, N, D), 1 for (N, T, D)")
    return int(shape[axis])


def _known(losses: Losses, n_steps: int) -> Rows | None:
    """The steps that have a loss."""
    if losses is None:
        return None
    if isinstance(losses, str):
        if losses not in ("all", "last"):
            msg = f"unknown losses {losses!r}"
            raise OptionError(msg, where="losses", hint="'all' or 'last', the steps that have one, or leave it out")
        return np.arange(1 if losses == "all" else n_steps, n_steps + 1)
    steps = np.unique(np.asarray(losses, np.int64))
    if not len(steps) or steps[0] < 1 or steps[-1] > n_steps:
        msg = f"losses at the steps {steps[0]} to {steps[-1]} of {n_steps}" if len(steps) else "losses at no step"
        raise OptionError(msg, where="losses", hint=f"some of 1 to {n_steps}")
    return steps


def _word(steps: Rows, n_steps: int) -> Literal["all", "last", "some"]:
    if len(steps) == n_steps:
        return "all"
    return "last" if steps.tolist() == [n_steps] else "some"


def _by_step_losses(probe: Probe, parameters: NamedArrays, step_losses: StepLosses) -> Identified:
    base = np.moveaxis(parameters[probe.name].astype(np.float64), probe.axis, 0)
    gradient = probe.gradient().reshape(base.shape)

    def asked(moved: Array) -> Array:
        probe.budget.take(len(moved), "identifying")
        found = np.asarray(step_losses({**parameters, probe.name: np.moveaxis(moved, 1, probe.axis + 1)}))
        if found.shape != (len(moved), len(base)):
            msg = f"step losses of {len(moved)} x {len(base)} inputs have shape {found.shape}"
            hint = "(T,) for one copy of the inputs; with batched=True (K, T) for K copies on a leading axis"
            raise ModelContractError(msg, where="step_losses", hint=hint)
        return found

    at_base = asked(base[None])[0]
    _check_sum(probe, parameters, at_base, base, asked)
    there = np.flatnonzero(at_base) + 1
    fits = by_step_losses(asked, base, gradient, seed=probe.seed, eps=eps(probe.digits))
    losses = _word(there, probe.n_steps)
    if not fits.finite:
        return _result(probe, "cannot tell", losses=losses, why="a step loss or a gradient is not finite")
    if fits.allowed[:, -1].all():
        if fits.resolved:
            return _result(probe, "not truncated", losses=losses, beyond=unnoticed(fits))
        why = "the losses bend too strongly, or are too coarse, for numeric derivatives"
        return _result(probe, "cannot tell", losses=losses, why=why)
    rows = hypotheses(fits)
    if not len(rows):
        why = "no truncation known here leaves out what this gradient leaves out"
        return _result(probe, "none of these", losses=losses, why=why)
    return _result(probe, "truncated", rows, losses=losses)


def _check_sum(
    probe: Probe, parameters: NamedArrays, at_base: Array, base: Array, asked: Callable[[Array], Array]
) -> None:
    """The step losses must move as the loss does; what does not depend on the inputs, as a penalty, may be missing."""
    size = float(np.sqrt(np.mean(np.square(base)))) or 1.0
    signs = np.random.default_rng([probe.seed, 12]).choice(np.array([-1.0, 1.0]), base.shape)
    own = parameters[probe.name]
    moved = np.moveaxis(base + _MOVED * size * signs, 0, probe.axis).astype(own.dtype)
    with np.errstate(all="ignore"):
        steps = np.array([at_base, asked(np.moveaxis(moved.astype(np.float64), probe.axis, 0)[None])[0]], np.float64)
        probe.budget.take(2, "identifying")
        losses = [float(probe.numeric.loss({**parameters, probe.name: x})) for x in (own, moved)]
        here, there = losses[1] - losses[0], float((steps[1] - steps[0]).sum())
        rounding = _ROUNDINGS * eps(probe.digits) * float(np.abs(losses).max() + np.abs(steps).sum(axis=1).max())
    if not np.isfinite([here, there, rounding]).all() or abs(here - there) <= rounding + _SAME * max(
        abs(here), abs(there)
    ):
        return
    msg = f"with the inputs moved, the loss changes by {number(here)} and the sum of the step losses by {number(there)}"
    times = f", {number(there / here)} times as much" if here else ""
    hint = "what each step adds to this very loss: where that is a mean, its share of the mean"
    msg += times
    raise ModelContractError(msg, where="step_losses", hint=hint)


def _by_influence(probe: Probe, losses: Rows | None) -> Identified:
    found = by_influence(probe, losses)
    names: dict[str, Status] = {"complete": "not truncated", "none": "none of these", "unclear": "cannot tell"}
    status: Status = names.get(found.status, "truncated")
    known = None if losses is None else _word(losses, probe.n_steps)
    return _result(probe, status, found.rows, losses=known, why=found.why)


def _result(
    probe: Probe,
    status: Status,
    rows: Rows | None = None,
    *,
    losses: Literal["all", "last", "some"] | None = None,
    beyond: int | None = None,
    why: str = "",
) -> Identified:
    return Identified(
        status=status,
        hypotheses=() if rows is None else tuple(map(truncation, rows)),
        n_steps=probe.n_steps,
        losses=losses,
        unnoticed=beyond,
        evaluations=probe.budget.evaluations,
        gradients=probe.budget.spent["gradient"],
        why=why,
    )
