"""What a model must show so that its losses and states can be looked at pair by pair."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from gradaudit.arrays import Array
from gradaudit.protocols import SupportsTruncation

__all__ = ["SupportsReach"]


@runtime_checkable
class SupportsReach(SupportsTruncation, Protocol):
    """A truncated recurrent model that shows its states: N sequences, T steps, S numbers in a state.

    Steps are (n,), ascending, from 1 to T.
    """

    def states_after(self, steps: Array) -> Array:
        """The states after these steps, (n, N, S).

        Raises:
            OptionError: there are none, or losses reach them from both ends of time.
        """

    def passed(self, steps: Array, moves: Array) -> tuple[Array, Array]:
        """What the truncated backward pass passes from each loss s to each state u, times ``moves`` (n, N, S).

        The scalar products, (n, n) at [s, u], and what they would be if nothing cancelled: the root of the sum of the
        squares of their terms.
        """

    def moved(self, losses: Array, states: Array, moves: Array) -> Array:
        """What each sequence adds to the loss at step s with the state after step u moved, (K, n, m, N) at [k, s, u].

        For n steps s, the ``losses``, and m steps u, the ``states``; moves are (K, m, N, S). Of no meaning for s < u.
        """
