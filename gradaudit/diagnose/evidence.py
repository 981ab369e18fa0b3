"""What the rules may look at. Experiments run when a rule asks for them, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, final

import numpy as np

from gradaudit.arrays import Array, Gradients, as_scalar, eps
from gradaudit.compare import Comparison, Verdict
from gradaudit.direction import Point, displace, random_direction
from gradaudit.measure.baseline import Baseline, gradient_at, gradient_of
from gradaudit.measure.beside import AtKink
from gradaudit.measure.judgement import Measurement, judge
from gradaudit.measure.localise import Located
from gradaudit.measure.measurement import further, locate, measured, with_entries
from gradaudit.measure.plan import Probe, scales
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.options import AuditOptions
from gradaudit.protocols import (
    Model,
    StepVariant,
    SupportsCuts,
    SupportsOrigin,
    SupportsRules,
    SupportsSizes,
    SupportsTruncation,
    SupportsVariants,
)
from gradaudit.recurrent import Truncation, none
from gradaudit.sites import CustomRule, Cut, Origin

__all__ = ["Evidence", "Tried", "least_squares_ratio", "unequal"]

#: A loss with held values is the same at the base point, up to so many eps.
_SAME = 64.0
#: Other directions than those of the audit; and how far another point is away.
_OTHER, _AWAY = 7_919, 0.1
#: A share of entries up to which they are named, and so many of them.
_FEW, _NAMED = 0.05, 8


class Tried(NamedTuple):
    """A gradient that an experiment made, and what the numbers say of it."""

    gradients: Gradients
    measured: Measurement


@final
@dataclass(eq=False)
class Evidence:
    """One audit's facts.

    Attributes:
        model: as the user gave it.
        options: of the audit.
        baseline: the base point.
        unfixed: the base point before the seed was fixed, where that was needed.
        total: the gradient against the loss; None where the loss does not repeat itself.
        frozen: the gradient against the loss with its cuts frozen; None where nothing is cut.
        at_kink: the base point, where kinks there left the gradient open; all else is then of a point beside it.
        budget: experiments are charged to it.
        explained: tensors for which a cause has been found.
        places: where wrong tensors are wrong, as far as a rule asked.
        right: gradients of wrong tensors that an experiment has shown to be right.
    """

    model: Model
    options: AuditOptions
    baseline: Baseline
    unfixed: Baseline | None
    total: Measurement | None
    frozen: Measurement | None
    at_kink: AtKink | None
    budget: Budget
    explained: set[str] = field(default_factory=set)
    places: dict[str, Located | None] = field(default_factory=dict)
    right: dict[str, Array] = field(default_factory=dict)

    @property
    def truncation(self) -> Truncation | None:
        """The truncation that the model declares."""
        return self.model.truncation if isinstance(self.model, SupportsTruncation) else None

    @property
    def sizes(self) -> dict[str, int]:
        """The model's own sizes, by name."""
        return dict(self.model.sizes()) if isinstance(self.model, SupportsSizes) else {}

    @cached_property
    def lifted_gradients(self) -> Gradients | None:
        """The experiment: the analytic gradient with the truncation lifted; None where nothing can be lifted."""
        if not isinstance(self.model, SupportsTruncation):
            return None
        _, gradients = gradient_of(self.model.with_truncation(none()), self.budget)
        return {name: gradients[name] for name in self.baseline.gradients}

    @property
    def lifted(self) -> Measurement | None:
        """That gradient against the numbers already there."""
        return None if self.lifted_gradients is None else self.judged(self.lifted_gradients)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """Where the gradient is cut, the user's own lines before those of libraries; empty where nobody can say."""
        if not isinstance(self.model, SupportsCuts):
            return ()
        try:
            return tuple(sorted(self.model.cuts(), key=lambda cut: cut.library))
        except Exception:  # noqa: BLE001  # a listing that fails lists nothing; the verdict stands without it
            return ()

    @cached_property
    def untried(self) -> tuple[Cut, ...]:
        """The user's own cuts that could be removed, if the model ran without them: what was written in place."""
        model = self.model
        if not isinstance(model, SupportsCuts):
            return ()
        own = [cut for cut in self.cuts if cut.removable and not cut.library][:_NAMED]
        try:
            return tuple(cut for cut in own if model.without([cut]) is None)
        except Exception:  # noqa: BLE001  # as in `cuts`
            return ()

    @cached_property
    def rules(self) -> tuple[CustomRule, ...]:
        """The derivatives written by hand, the user's own before those of libraries; empty where nobody can say."""
        if not isinstance(self.model, SupportsRules):
            return ()
        try:
            return tuple(sorted(self.model.rules(), key=lambda rule: rule.library))
        except Exception:  # noqa: BLE001  # as in `cuts`
            return ()

    @cached_property
    def origin(self) -> Origin | None:
        """Where the gradient stops being finite; None where the model cannot say."""
        if not isinstance(self.model, SupportsOrigin):
            return None
        try:
            return self.model.origin()
        except Exception:  # noqa: BLE001  # as in `cuts`
            return None

    @cached_property
    def variants(self) -> tuple[StepVariant, ...] | None:
        """A training step, run differently; None: the model is none."""
        if not isinstance(self.model, SupportsVariants):
            return None
        try:
            found = self.model.variants()
        except Exception:  # noqa: BLE001  # as in `cuts`
            return ()
        return None if found is None else tuple(found)

    def of(self, variant: StepVariant) -> Tried | None:
        """The experiment: the gradient of a step run differently."""
        return self._tried(lambda: variant.model)

    def without(self, cuts: Sequence[Cut]) -> Tried | None:
        """The experiment: the analytic gradient with these cuts removed, against the numbers already there."""
        model = self.model
        return self._tried(lambda: model.without(cuts) if isinstance(model, SupportsCuts) else None)

    def replacing(self, rules: Sequence[CustomRule]) -> Tried | None:
        """The experiment: these rules replaced by the derivatives of their primals."""
        model = self.model
        return self._tried(lambda: model.replacing(rules) if isinstance(model, SupportsRules) else None)

    def judged(self, gradients: Gradients) -> Measurement | None:
        """Another gradient against the numbers already there."""
        if self.total is None:
            return None
        chosen = {name: gradients[name] for name in self.baseline.gradients}
        return judge(self.total.lines, chosen, self.total.source, self.options, own=False)

    def _tried(self, change: Callable[[], Model | None]) -> Tried | None:
        try:
            model = None if self.total is None else change()
            if model is None:
                return None
            _, gradients = gradient_of(model, self.budget)
        except Exception:  # noqa: BLE001  # the budget is spent, or what is left cannot be differentiated
            return None
        measured = self.judged(gradients)
        return None if measured is None else Tried(gradients, measured)

    def holding(self, cuts: Sequence[Cut]) -> Measurement | None:
        """The experiment: the analytic gradient against the loss whose cut values stay what they are."""
        if not isinstance(self.model, SupportsCuts):
            return None
        try:
            model = self.model.holding(cuts)
            if model is None:
                return None
            loss = as_scalar(model.loss(model.parameters()), "loss()")
            # what is held must be what was there; otherwise the experiment says nothing
            if abs(float(loss) - float(self.baseline.loss)) > _SAME * eps(loss.dtype) * abs(float(loss)):
                return None
            return measured(model, loss, self.baseline.gradients, self.options, self.budget)
        except Exception:  # noqa: BLE001  # as in `without`
            return None

    def along(self, supports: Sequence[Mapping[str, float | Array]]) -> list[Comparison]:
        """The experiment: the gradient along random directions with these supports; empty where it cannot be made."""
        seed = self.options.seed + _OTHER
        probes = [
            Probe(random_direction(", ".join(s), s, seed + i), next(iter(s)) if len(s) == 1 else None)
            for i, s in enumerate(supports)
        ]
        if self.total is None:
            return []
        try:
            return further(self.total, self.baseline.gradients, probes, self.options, self.budget)
        except Stop:
            return []

    def elsewhere(self) -> tuple[Gradients, Gradients] | None:
        """The experiment: the gradient twice at other parameters, each entry moved by a tenth of its tensor's size."""
        parameters = self.model.parameters()
        direction = random_direction("elsewhere", scales(parameters), self.options.seed + _OTHER)
        moved = displace(parameters, Point(direction, _AWAY))
        try:
            return gradient_at(self.model, moved, self.budget), gradient_at(self.model, moved, self.budget)
        except Exception:  # noqa: BLE001  # outside the domain, or out of budget
            return None

    def place(self, name: str) -> Located | None:
        """The experiment: where a wrong tensor is wrong, by its entries if they were read, else by group tests."""
        if name not in self.places and self.total is not None:
            self._read([name])
            read = self.total.of(name, entries=True)
            try:
                self.places[name] = _by_entries(read) if read else self._located(name)
            except Stop:
                self.places[name] = None
        return self.places.get(name)

    def place_by(self, names: Sequence[str], right: Gradients) -> None:
        """Where these tensors are wrong, from a gradient that an experiment has shown to be right."""
        for name in names:
            g, other = self.baseline.gradients[name], right[name]
            if g is not None and other is not None and name not in self.places:
                self.right[name] = other
                self.places[name] = _by_difference(np.asarray(g, np.float64) - other, unequal(g))

    def _read(self, names: Sequence[str]) -> None:
        """Have the entries of small tensors read that wait for a rule to ask: no experiment has told them."""
        if self.total is not None:
            self.total = self.entered(self.total, names)

    def entered(self, measured: Measurement, names: Sequence[str]) -> Measurement:
        """The same with the entries of these small tensors, but for those that an experiment has told."""
        unread = [name for name in measured.unread if name in names and name not in self.right]
        try:
            return with_entries(measured, self.baseline.gradients, unread, self.options, self.budget)
        except Stop:
            return measured

    def _located(self, name: str) -> Located | None:
        assert self.total is not None  # see place
        return locate(self.total, self.baseline.gradients, name, self.options, self.budget)

    def wrong(self) -> list[str]:
        """The tensors that disagree with the loss and have no cause yet."""
        if self.total is None:
            return []
        verdicts = self.total.verdicts.items()
        return [name for name, verdict in verdicts if verdict is Verdict.DISAGREE and name not in self.explained]

    def lines(self, names: list[str]) -> list[Comparison]:
        """All comparisons of these tensors, directions and entries."""
        self._read(names)
        if self.total is None:
            return []
        return [c for name in names for entries in (False, True) for c in self.total.of(name, entries=entries)]


def unequal(gradient: Array) -> float:
    """Entries of a difference to a right gradient are errors beyond this share of the largest, else rounding."""
    return float(np.sqrt(eps(gradient.dtype)))


def _by_difference(error: Array, share: float) -> Located | None:
    """The entries of an error, the worst first; None where they are no few."""
    wrong = np.abs(error) > share * np.abs(error).max(initial=0.0)
    n_wrong = int(wrong.sum())
    if not 0 < n_wrong <= _FEW * error.size:
        return None
    order = np.argsort(-np.abs(error), axis=None)[: min(n_wrong, _NAMED)]
    entries = tuple(tuple(map(int, index)) for index in np.transpose(np.unravel_index(order, error.shape)))
    more = f" and {n_wrong - len(entries)} more" if n_wrong > len(entries) else ""
    return Located(
        kind="entries",
        where=", ".join(map(str, entries)) + more,
        entries=entries,
        errors=tuple(float(error[index]) for index in entries),
        directions=0,
        complete=True,
    )


def _by_entries(read: list[Comparison]) -> Located:
    latest = {c.direction.entry: c for c in read}
    wrong = [c for c in latest.values() if c.verdict is Verdict.DISAGREE and c.direction.entry is not None]
    wrong.sort(key=lambda c: -abs(c.analytic - c.numeric) / c.direction.length)
    most = 2 * len(wrong) > len(latest)
    return Located(
        kind="whole tensor" if most else "entries" if wrong else "not found",
        where=f"{len(wrong)} of {len(latest)} entries" if most else ", ".join(str(c.direction.entry) for c in wrong),
        entries=tuple(c.direction.entry for c in wrong if c.direction.entry is not None),
        errors=tuple((c.analytic - c.numeric) / c.direction.length for c in wrong),
        directions=0,
        complete=True,
    )


def least_squares_ratio(comparisons: list[Comparison]) -> float:
    """The c for which analytic = c * numeric fits best, each line weighted by its scale; NaN without numbers."""
    usable = [c for c in comparisons if np.isfinite(c.numeric) and np.isfinite(c.analytic) and c.scale > 0]
    square = sum((c.numeric / c.scale) ** 2 for c in usable)
    if square == 0:
        return float("nan")
    return float(sum((c.analytic / c.scale) * (c.numeric / c.scale) for c in usable) / square)
