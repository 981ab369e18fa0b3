"""Forward passes are counted before they are made; progress and cancelling hang on the same count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Budget", "Stop"]


class Stop(Exception):  # noqa: N818  # not an error: the audit ends early and reports what it has
    """The budget is spent."""


@dataclass(slots=True)
class Budget:
    """One per audit.

    Attributes:
        max_evaluations: forward passes at most.
        progress: called with the number of forward passes made so far.
        spent: forward passes by purpose.
    """

    max_evaluations: int
    progress: Callable[[int], None] | None = None
    spent: Counter[str] = field(default_factory=Counter)

    @property
    def evaluations(self) -> int:
        """Forward passes made so far; a gradient counts apart, see ``spent``."""
        return sum(n for purpose, n in self.spent.items() if purpose != "gradient")

    def take(self, n: int, purpose: str) -> None:
        """Announce n evaluations.

        Raises:
            Stop: they would exceed the budget; nothing is taken then.
        """
        if purpose != "gradient" and self.evaluations + n > self.max_evaluations:
            raise Stop
        self.spent[purpose] += n
        if self.progress is not None:
            self.progress(self.evaluations)
