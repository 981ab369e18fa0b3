"""Truncated back-propagation through time, as the set of (loss step, use step) pairs that count.

Steps are numbered 1..T. The full gradient of ``sum_s loss_s`` is a sum over pairs (s, u), u <= s, of the derivative
of ``loss_s`` through the *use* of the weights at step u (Werbos 1990). A truncation keeps some of the pairs; it never
changes the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gradaudit.errors import OptionError, UnsupportedTruncationError

__all__ = ["Truncation", "chunks", "none", "tail", "window"]

Kind = Literal["none", "tail", "window", "chunks"]
_KINDS: tuple[Kind, ...] = ("none", "tail", "window", "chunks")


@dataclass(frozen=True, slots=True)
class Truncation:
    """Which pairs (loss step s, use step u <= s) of T steps contribute to the gradient.

    Build one with `none`, `tail`, `window`, `chunks` or `Truncation.parse`.

    Raises:
        OptionError: an unknown kind, or k < 1.
    """

    kind: Kind
    k: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            msg = f"unknown truncation {self.kind!r}"
            raise OptionError(msg, where="truncation", hint=f"one of {', '.join(_KINDS)}, for example tail:1")
        if self.kind == "none":
            if self.k is not None:
                msg = f"truncation none takes no k, got k = {self.k}"
                raise OptionError(msg, where="truncation", hint="write none, or tail:K")
            return
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            msg = f"truncation {self.kind} needs a whole number of steps k >= 1, got k = {self.k}"
            hint = f"{self.kind}:1 keeps one step; none keeps all of them"
            raise OptionError(msg, where="truncation", hint=hint)

    def __str__(self) -> str:
        return f"{self.kind}({'' if self.k is None else self.k})"

    @classmethod
    def parse(cls, text: str) -> Truncation:
        """Read ``none``, ``tail:1``, ``window:5`` or ``chunks:20``.

        Raises:
            OptionError: the text is none of these.
        """
        kind, colon, k = text.strip().partition(":")
        try:
            number = int(k) if colon else None
        except ValueError:
            msg = f"cannot read the number of steps in truncation {text!r}"
            raise OptionError(msg, where="truncation", hint="write it as tail:1") from None
        return cls(kind, number)  # type: ignore[arg-type]  # an unknown kind is refused in __post_init__

    def cuts(self, n_steps: int) -> bool:
        """Whether anything is left out over ``n_steps`` steps; k >= n_steps keeps everything."""
        return self.k is not None and self.k < n_steps

    def keeps(self, loss_step: int, use_step: int, n_steps: int) -> bool:
        """Whether the pair (s, u) = (loss_step, use_step) of T = n_steps contributes to the gradient."""
        s, u = loss_step, use_step
        if not 1 <= u <= s <= n_steps:
            return False
        match self.kind:
            case "none":
                return True
            case "tail":
                return u > n_steps - (self.k or 0)
            case "window":
                return s - u < (self.k or 0)
            case "chunks":
                return (s - 1) // (self.k or 1) == (u - 1) // (self.k or 1)

    def pairs(self, n_steps: int) -> NDArray[np.bool_]:
        """All pairs at once: entry [s-1, u-1] of the (T, T) array says whether (s, u) is kept."""
        steps = range(1, n_steps + 1)
        return np.array([[self.keeps(s, u, n_steps) for u in steps] for s in steps], dtype=bool)

    def n_cut_steps(self, n_steps: int) -> int:
        """How many leading steps the backward pass never visits: T - k for `tail`, 0 for `none`.

        Raises:
            UnsupportedTruncationError: the pairs kept are not "all u > c" for one c.
        """
        if not self.cuts(n_steps):
            return 0
        if self.kind != "tail" or self.k is None:
            msg = f"the built-in recurrent layers do not implement {self} yet"
            raise UnsupportedTruncationError(msg, where="truncation", hint="use none or tail:K")
        return n_steps - self.k


def none() -> Truncation:
    """Full back-propagation through time: every pair u <= s (Werbos 1990)."""
    return Truncation("none")


def tail(k: int) -> Truncation:
    """The backward pass covers the last k steps of the sequence only: pairs with u > T - k.

    Theano's ``scan(truncate_gradient=k)``, and so Lasagne's ``gradient_steps=k``. Losses at earlier steps contribute
    nothing at all, not even for the weights of their own step.
    """
    return Truncation("tail", k)


def window(k: int) -> Truncation:
    """Every loss goes back k steps: pairs with s - u < k. BPTT(k) of Williams & Peng (1990)."""
    return Truncation("window", k)


def chunks(k: int) -> Truncation:
    """The state is detached every k steps: pairs within one block of k steps. The PyTorch habit."""
    return Truncation("chunks", k)
