"""Where a TensorFlow loss cuts its gradient; the same loss with cuts removed, or with what they produced held."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import final

from gradaudit.arrays import NamedArrays
from gradaudit.backends.tensorflow.eager import EagerFunction, EagerModel, Twin, evaluate
from gradaudit.sites import Cut

__all__ = ["CutExperiments"]


@final
class CutExperiments:
    """The cuts of one function at one base point: `gradaudit.protocols.SupportsCuts`.

    Args:
        function: from a dict of named tensors to one number.
        parameters: the base point.
    """

    def __init__(self, function: EagerFunction, parameters: NamedArrays) -> None:
        self._function = function
        self._parameters = parameters
        self._listed: tuple[Cut, ...] | None = None

    def cuts(self) -> tuple[Cut, ...]:
        """The live cuts, in the order of their first execution; empty if the function cannot run eagerly."""
        if self._listed is None:
            try:
                counts = evaluate(self._function, self._parameters).redirection.counts
            except Exception:  # noqa: BLE001  # no one type says "in a graph only" or "not in this TensorFlow"
                counts = {}
            self._listed = tuple(replace(cut, executions=n) for cut, n in counts.items())
        return self._listed

    def without(self, cuts: Collection[Cut], twin: Twin) -> EagerModel | None:
        """The function with cuts removed; None where one is not listed or cannot be removed."""
        # as listed: a cut that somebody else made may not know that it cannot be removed
        chosen = [cut for cut in self.cuts() if cut in cuts]
        if len(chosen) < len(set(cuts)) or not all(cut.removable for cut in chosen):
            return None
        return EagerModel(self._function, self._parameters, twin, removed=frozenset(chosen))

    def holding(self, cuts: Collection[Cut], twin: Twin) -> EagerModel | None:
        """The function with what the cuts produce held at the base point; None where one is not listed."""
        if not set(cuts) <= set(self.cuts()):
            return None
        try:
            recorded = evaluate(self._function, self._parameters, recording=frozenset(cuts)).redirection.recorded
        except Exception:  # noqa: BLE001  # as in `cuts`
            return None
        return EagerModel(self._function, self._parameters, twin, held=recorded)
