"""Truncated back-propagation through time, as the set of (loss step, use step) pairs that count.

Steps are numbered 1..T. The full gradient of ``sum_s loss_s`` is a sum over pairs (s, u), u <= s, of the derivative
of ``loss_s`` through the *use* of the weights at step u (Werbos 1990). A truncation keeps some of the pairs, or weighs
them; it never changes the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradaudit.errors import OptionError

__all__ = ["Gates", "Truncation", "chunks", "none", "randomised", "tail", "tbptt", "window"]

Kind = Literal["none", "tail", "window", "chunks", "tbptt", "randomised"]
#: What each kind takes, in the order in which it is written.
_FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "tail": ("k",),
    "window": ("k",),
    "chunks": ("k",),
    "tbptt": ("k1", "k"),
    "randomised": ("p", "seed"),
}
#: How each kind is written.
_EXAMPLES: dict[str, str] = {
    "none": "none",
    "tail": "tail:1",
    "window": "window:5",
    "chunks": "chunks:20",
    "tbptt": "tbptt:5:20",
    "randomised": "randomised:0.1",
}


class Gates(NamedTuple):
    """A truncation as factors on the adjoint inside one backward pass over all steps.

    Attributes:
        state: (T, N), entry t: what the gradient that crosses the state h_t is multiplied with, t = 0..T-1.
        output: (T,), entry t-1: the same for what enters from the loss of step t.
    """

    state: NDArray[np.float64]
    output: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Truncation:
    """Which pairs (loss step s, use step u <= s) of T steps contribute to the gradient.

    Build one with `none`, `tail`, `window`, `chunks`, `tbptt`, `randomised` or `Truncation.parse`.

    Attributes:
        kind: which of these.
        k: how many steps a gradient goes back at most; for tbptt this is k2.
        k1: for tbptt: how many steps there are from one backward pass to the next.
        p: for randomised: the probability of a cut at a step.
        seed: for randomised: of its draws.

    Raises:
        OptionError: an unknown kind; k < 1, or k1 < 1 or > k2; p not between 0 and 1; a negative seed; a number that
            this kind does not take.
    """

    kind: Kind
    k: int | None = None
    k1: int | None = None
    p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            msg = f"unknown truncation {self.kind!r}"
            raise OptionError(msg, where="truncation", hint=f"one of {', '.join(_FIELDS)}, for example tail:1")
        for name in ("k", "k1", "p", "seed"):
            value = getattr(self, name)
            if name not in _FIELDS[self.kind] and value is not None:
                msg = f"truncation {self.kind} takes no {name}, got {name} = {value}"
                raise OptionError(msg, where="truncation", hint=f"write {_EXAMPLES[self.kind]}, or tail:K")
        if self.kind == "randomised":
            self._check_randomised()
        elif self.kind != "none":
            self._check_steps()

    def _check_steps(self) -> None:
        for name in _FIELDS[self.kind]:
            if not self._whole(name) or getattr(self, name) < 1:
                steps = getattr(self, name)
                msg = f"truncation {self.kind} needs a whole number of steps {name} >= 1, got {name} = {steps}"
                hint = f"{self.kind}:1 keeps one step; none keeps all of them"
                if self.kind == "tbptt":
                    hint = "tbptt:5:20 goes back 20 steps every 5 steps"
                raise OptionError(msg, where="truncation", hint=hint)
        if self.k is not None and self.k1 is not None and self.k1 > self.k:
            msg = f"truncation tbptt goes back k2 = {self.k} steps every k1 = {self.k1} steps: less than one block"
            raise OptionError(msg, where="truncation", hint=f"tbptt:{self.k1}:{self.k1}, or more for k2")

    def _check_randomised(self) -> None:
        if not isinstance(self.p, Real) or not 0 < self.p < 1:
            msg = f"truncation randomised needs a probability of a cut, 0 < p < 1, got p = {self.p}"
            raise OptionError(msg, where="truncation", hint="randomised:0.1 cuts once in 10 steps; none never")
        object.__setattr__(self, "p", float(self.p))
        if not self._whole("seed") or self.seed is None or self.seed < 0:
            msg = f"truncation randomised needs a seed, a whole number >= 0, got seed = {self.seed}"
            raise OptionError(msg, where="truncation", hint="randomised:0.1:0")

    def _whole(self, name: str) -> bool:
        """Whether it is a whole number; of NumPy's it makes Python's, which JSON knows."""
        number = getattr(self, name)
        if not isinstance(number, Integral) or isinstance(number, bool):
            return False
        object.__setattr__(self, name, int(number))
        return True

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(str(getattr(self, name)) for name in _FIELDS[self.kind])})"

    @classmethod
    def parse(cls, text: str) -> Truncation:
        """Read ``none``, ``tail:1``, ``window:5``, ``chunks:20``, ``tbptt:5:20``, ``randomised:0.1`` (seed 0).

        ``randomised:0.1:7`` has seed 7.

        Raises:
            OptionError: the text is none of these.
        """
        kind, *numbers = text.strip().split(":")
        names = _FIELDS.get(kind, ("k",))
        hint = f"write it as {_EXAMPLES.get(kind, 'tail:1')}"
        if len(numbers) > len(names):
            msg = f"truncation {text!r} has {len(numbers)} numbers"
            raise OptionError(msg, where="truncation", hint=hint)
        try:
            given = {n: float(v) if n == "p" else int(v) for n, v in zip(names, numbers, strict=False)}
        except ValueError:
            msg = f"cannot read the number of steps in truncation {text!r}"
            raise OptionError(msg, where="truncation", hint=hint) from None
        seeded = {"seed": 0} if kind == "randomised" else {}
        return cls(kind, **(seeded | given))  # type: ignore[arg-type]  # an unknown kind is refused in __post_init__

    def cuts(self, n_steps: int) -> bool:
        """Whether anything is left out, or weighed, over ``n_steps`` steps; k >= n_steps keeps everything."""
        return n_steps > 1 if self.kind == "randomised" else self.k is not None and self.k < n_steps

    def keeps(self, loss_step: int, use_step: int, n_steps: int) -> bool:
        """Whether the pair (s, u) = (loss_step, use_step) of T = n_steps contributes to the gradient.

        `randomised` keeps all of them; what they weigh is the product of its `gates` t = u..s-1.
        """
        s, u, k, k1 = loss_step, use_step, self.k or 0, self.k1 or 1
        if not 1 <= u <= s <= n_steps:
            return False
        match self.kind:
            case "none" | "randomised":
                return True
            case "tail":
                return u > n_steps - k
            case "window":
                return s - u < k
            case "chunks":
                return (s - 1) // k == (u - 1) // k
            case "tbptt":
                return u > min(n_steps, -(-s // k1) * k1) - k

    def reach(self, n_steps: int) -> NDArray[np.int64]:
        """e(u) for u = 1..T, (T,): the use at step u is kept for the losses u..e(u), for none where e(u) = 0.

        Every truncation keeps an interval of losses for each use, so this is the whole definition of all but
        `randomised`, which keeps everything at random weights.
        """
        uses, k, k1 = np.arange(1, n_steps + 1), self.k or 0, self.k1 or 1
        if not self.cuts(n_steps) or self.kind == "randomised":
            return np.full(n_steps, n_steps)
        ends = np.minimum(uses + k - 1, n_steps)
        match self.kind:
            case "tail":
                return np.where(uses > n_steps - k, n_steps, 0)
            case "chunks":
                return np.minimum(((uses - 1) // k + 1) * k, n_steps)
            case "tbptt":
                return np.where(ends == n_steps, n_steps, ends // k1 * k1)
        return ends

    def pairs(self, n_steps: int) -> NDArray[np.bool_]:
        """All pairs at once: entry [s-1, u-1] of the (T, T) array says whether (s, u) is kept."""
        steps = np.arange(1, n_steps + 1)
        return (steps <= steps[:, None]) & (steps[:, None] <= self.reach(n_steps))

    def segments(self, n_steps: int) -> NDArray[np.int64]:
        """The first normal form, rows (a, m, c): from the state h_a run steps a+1..c and count the losses m..c.

        h_a is held, unless a = 0: then h_0 is the live initial state. The sum over all rows of the ordinary gradients
        of these runs is the truncated gradient; losses in no row contribute nothing. `randomised` has its `gates`
        inside the one run.
        """
        if not self.cuts(n_steps) or self.kind == "randomised":
            return np.array([[0, 1, n_steps]])
        k, k1 = self.k or 0, {"window": 1, "tbptt": self.k1 or 1}.get(self.kind, self.k or 0)
        if self.kind == "tail":
            return np.array([[n_steps - k, n_steps - k + 1, n_steps]])
        before = np.arange(0, n_steps, k1)
        ends = np.minimum(before + k1, n_steps)
        starts = before if self.kind == "chunks" else np.maximum(0, ends - k)
        # runs from the beginning are parts of the longest one
        last = np.searchsorted(starts, 0, side="right") - 1
        merged = np.array([[0, 1, ends[last]]])
        return np.concatenate([merged, np.stack([starts, before + 1, ends], axis=1)[last + 1 :]])

    def gates(self, n_steps: int, n_sequences: int) -> Gates | None:
        """The second normal form; None for `window`, and for `tbptt`, which have none.

        The draws of `randomised` are those of its seed and these two sizes, one for each sequence and state; h_0 is
        never cut.
        """
        state, output, k = np.ones((n_steps, n_sequences)), np.ones(n_steps), self.k or 0
        if self.kind == "randomised":
            p, rng = self.p or 0.0, np.random.default_rng([self.seed or 0, 3])
            state[1:] = np.where(rng.random((n_steps - 1, n_sequences)) < p, 0.0, 1 / (1 - p))
        elif not self.cuts(n_steps):
            return Gates(state, output)
        elif self.kind == "chunks":
            state[k::k] = 0
        elif self.kind == "tail":
            state[: n_steps - k + 1] = 0
            output[: n_steps - k] = 0
        else:
            return None
        return Gates(state, output)


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


def tbptt(k1: int, k2: int) -> Truncation:
    """Every k1 steps, the losses of these k1 steps go back k2 >= k1 steps, counted from the last of them.

    BPTT(h; h') of Williams & Peng (1990); Sutskever (2013). The last block may be short; its losses then reach further
    back. ``tbptt(1, k)`` is ``window(k)``; ``tbptt(k, k)`` is ``chunks(k)`` where k divides T.
    """
    return Truncation("tbptt", k2, k1)


def randomised(p: float, seed: int = 0) -> Truncation:
    """At every step the gradient is cut with probability p, and multiplied by 1 / (1 - p) where it is not.

    ARTBP at a constant rate (Tallec & Ollivier 2017): its mean over seeds is the full gradient. Drawn once for each
    sequence and step from the seed, the same on every backend and at every call.
    """
    return Truncation("randomised", p=p, seed=seed)
