"""How far back a gradient goes, told from models of other lengths: what is cut begins to be missing at some length.

For those in which only weights are differentiated, shared by all steps: one model for each number of steps. Up to k
steps a truncation after k steps cuts nothing, and the gradient is right; at k + 1 something is missing.
"""

from __future__ import annotations

from collections.abc import Callable

from gradaudit.compare import Verdict
from gradaudit.errors import OptionError
from gradaudit.lens.identify import Identified, Status
from gradaudit.measure.baseline import baseline
from gradaudit.measure.measurement import measured
from gradaudit.measure.state import preserved
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.options import AuditOptions
from gradaudit.protocols import Model
from gradaudit.recurrent import Truncation, chunks, tail, tbptt, window

__all__ = ["by_length"]


class _Unclear(Exception):  # noqa: N818  # no error: a verdict
    """At one length nothing could be told."""


def by_length(
    of_length: Callable[[int], Model], n_steps: int, *, seed: int = 0, max_evaluations: int = 20_000
) -> Identified:
    """See `gradaudit.identify_by_length`, with models.

    Raises:
        ModelContractError: a model breaks its contract.
        OptionError: fewer than two steps.
    """
    if n_steps < 2:  # one step has no past
        msg = f"{n_steps} steps"
        raise OptionError(msg, where="n_steps", hint="as many steps as the model has, two at least")
    search = _Search(of_length, AuditOptions(seed=seed), Budget(max_evaluations))
    try:
        if search.is_right(n_steps):
            return _result(search, n_steps, "not truncated")
        k = search.longest_right(n_steps)
    except _Unclear as unclear:
        return _result(search, n_steps, "cannot tell", why=str(unclear))
    except Stop:
        return _result(search, n_steps, "cannot tell", why=f"max_evaluations = {max_evaluations:,} is too few")
    if k == 0:
        return _result(search, n_steps, "none of these", why="the gradient of one step alone is wrong")
    return _result(search, n_steps, "truncated", k)


class _Search:
    def __init__(self, of_length: Callable[[int], Model], options: AuditOptions, budget: Budget) -> None:
        self._of_length, self._options, self.budget = of_length, options, budget

    def is_right(self, n_steps: int) -> bool:
        """Whether the gradient over so many steps is the derivative."""
        model = self._of_length(n_steps)
        with preserved(model):
            base = baseline(model, self._options, self.budget)
            if not base.repeatable:
                msg = f"the loss of {n_steps:,} steps does not repeat itself"
                raise _Unclear(msg)
            found = measured(model, base.loss, base.gradients, self._options, self.budget)
        if not found.complete:
            raise Stop
        if found.verdict is Verdict.INCONCLUSIVE:
            msg = f"the gradient over {n_steps:,} steps can be called neither right nor wrong"
            raise _Unclear(msg)
        return found.verdict is Verdict.AGREE

    def longest_right(self, wrong: int) -> int:
        """The most steps over which the gradient is right, fewer than ``wrong``: by doubling, then halving."""
        right, at = 0, 1
        while wrong - right > 1:
            if self.is_right(at):
                right, at = at, 2 * at
            else:
                wrong = at
            at = at if at < wrong else (right + wrong) // 2
        return right


def _result(search: _Search, n_steps: int, status: Status, k: int | None = None, *, why: str = "") -> Identified:
    return Identified(
        status=status,
        hypotheses=() if k is None else _after(k, n_steps),
        n_steps=n_steps,
        evaluations=search.budget.evaluations,
        gradients=search.budget.spent["gradient"],
        why=why,
    )


def _after(k: int, n_steps: int) -> tuple[Truncation, ...]:
    """All truncations that cut nothing of k steps, and something of k + 1; each once."""
    blocks = (tbptt(k1, k) for k1 in range(2, k + 1) if k1 < k or n_steps % k)
    return tail(k), window(k), chunks(k), *blocks
