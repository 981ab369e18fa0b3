"""How biased is a truncated gradient, and how long must the truncation be? See Aicher, Foti & Fox (2019).

The gradient of ``window(k)`` is the sum of the contributions of all pairs of steps less than k apart; far pairs
contribute less and less, in the end by a factor beta for each step further apart. So a few lengths say how much is left
out by all others. Every gradient here is the model's own, at another truncation: nothing is derived from it a second
time, and any model that has `gradaudit.protocols.SupportsTruncation` has a curve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from gradaudit.arrays import Gradients, eps
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.lens.curves import BiasCurve, BiasPoint, SemanticsCurve, smallest, truncation_of
from gradaudit.lens.decay import Counted, Gradient, Reference, counted, difference, extrapolated, lengths, norms, rate
from gradaudit.measure.state import preserved
from gradaudit.protocols import Model, SupportsSizes, SupportsTruncation, SupportsWindows
from gradaudit.recurrent import Truncation, none

__all__ = ["bias_curve"]

_KINDS = ("window", "chunks", "tail")
#: And tbptt(K1, k), for a K1 of one's own.
_BLOCKS = "tbptt:"
#: The cost of windows grows with k; beyond this one they cost more than a look at the bias should.
_HORIZON = 256
#: A block of pairs that is smaller than so many roundings of the whole is rounding itself.
_ROUNDINGS = 1e3


class _Sample(NamedTuple):
    gradient: Gradient
    seconds: float | None


def bias_curve(
    model: Any,
    *,
    delta: float = 0.1,
    kinds: str | Collection[str] = _KINDS,
    horizon: int = _HORIZON,
    full: bool = True,
    n_steps: int | None = None,
    name: str | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> BiasCurve:
    """The relative bias of truncated gradients against the full one, and the smallest k that keeps it below delta.

    Lengths are 1, 2, 3, 4, then four to a doubling, until the bias has fallen below delta, then those that bisect to
    the smallest such k; between these lengths nothing is measured. ``window(k)`` runs about T k steps, ``chunks(k)`` T
    and ``tail(k)`` k; `BiasCurve.work` says what all of it ran: up to a horizon of K, windows at most ``7.5 K`` times
    the steps of one full gradient, and no more than log2(K) windows to bisect.

    The built-in networks have every window: window(k + 1) is window(k) and the pairs of steps k apart, which cost T
    steps side by side, see `gradaudit.protocols.SupportsWindows`. Only 1, 2, 4, 8, ... and the answer are gradients of
    their own then, each run twice, to be timed without compiling: in all at most ``5 K`` times the steps of the full
    one, and the answer's.

    The bias of a kind is that of all parameters together which it changes: the gradient of a readout is whole under
    every window, and would hide what that of the recurrent weights lacks. Each parameter's own is beside it.

    Args:
        model: a recurrent model that has ``with_truncation``, see `gradaudit.protocols.SupportsTruncation`: the
            built-in networks of every backend, whatever they declare; or your own.
        delta: the relative bias to stay below, between 0 and 1.
        kinds: one or some of ``window``, ``chunks``, ``tail``, and ``tbptt:K1`` for ``tbptt(K1, k)`` with k from K1 on;
            in this order in the result. ``randomised`` has no bias, its mean over seeds is the full gradient.
        horizon: the longest window that is tried. The others cost no more than the full gradient each, and are
            followed to T.
        full: compare with the full gradient. If False, because it would take too much memory, the longest window K
            stands for it, and what is left out beyond is bounded by a geometric series (Aicher, Foti & Fox 2019): with
            G the last block of w ages, ``rem = ||G|| beta^w / (1 - beta^w)``, and ``(||g_K - g_k|| + rem) /
            (||g_K|| - rem)`` is reported as the bias. No kind is then followed beyond the horizon.
        n_steps: T, for a model without ``sizes()["steps"]``.
        name: of the model in the result.
        progress: called with what is measured, and the number of gradients so far.

    Raises:
        ModelContractError: the model has no ``with_truncation``, or its full gradient is zero or not finite.
        OptionError: a delta, kind, horizon or number of steps out of range; no number of steps, or another than the
            model's own.
    """
    if not isinstance(model, SupportsTruncation) or not isinstance(model, Model):
        msg = f"a {type(model).__name__} has no truncation of its own that could be changed"
        hint = "a built-in network, or a model with parameters(), value_and_grad(p) and with_truncation(t)"
        raise ModelContractError(msg, where="bias_curve()", hint=hint)
    kinds = [kinds] if isinstance(kinds, str) else list(dict.fromkeys(kinds))
    started = time.perf_counter()
    steps = _n_steps(model, n_steps)
    _check(delta, kinds, horizon, steps if full else min(horizon, steps))
    kinds = [*(kind for kind in _KINDS if kind in kinds), *(kind for kind in kinds if kind not in _KINDS)]
    with preserved(model):
        lens = _Lens(model, delta=delta, n_steps=steps, horizon=min(horizon, steps), full=full, progress=progress)
        # without the full gradient, the windows come first: the longest of them stands for it
        found = {kind: lens.curve(kind) for kind in dict.fromkeys(kinds if full else ["window", *kinds])}
    return BiasCurve(
        target=name or type(model).__name__,
        delta=delta,
        n_steps=steps,
        full=full,
        curves=tuple(found[kind] for kind in kinds),
        gradients=lens.gradients,
        work=lens.work,
        full_seconds=lens.full_seconds,
        seconds=time.perf_counter() - started,
    )


def _check(delta: float, kinds: Collection[str], horizon: int, longest: int) -> None:
    if not 0 < delta < 1:
        msg = f"delta must be between 0 and 1, got {delta}"
        raise OptionError(msg, where="delta", hint="delta=0.1: a tenth of the gradient may be missing")
    unknown = [kind for kind in kinds if kind not in _KINDS and not _block(kind)]
    if unknown or not kinds:
        msg = f"no bias curve of {', '.join(map(repr, unknown)) or 'nothing'}"
        raise OptionError(msg, where="kinds", hint=f"some of {', '.join(_KINDS)}, tbptt:K1 (for example tbptt:10)")
    if (block := max(map(_block, kinds))) > longest:
        msg = f"tbptt every {block} steps, of {longest} that are looked at"
        raise OptionError(msg, where="kinds", hint=f"tbptt:K1 with K1 of at most {longest}")
    if horizon < 1:
        msg = f"horizon must be at least 1, got {horizon}"
        raise OptionError(msg, where="horizon", hint=f"horizon={_HORIZON}")


def _block(kind: str) -> int:
    """K1 of ``tbptt:K1``; 0 for all else."""
    number = kind.removeprefix(_BLOCKS)
    return int(number) if kind.startswith(_BLOCKS) and number.isdecimal() else 0


def _n_steps(model: Model, given: int | None) -> int:
    own = model.sizes().get("steps") if isinstance(model, SupportsSizes) else None
    if None not in (own, given) and own != given:
        msg = f"n_steps is {given}, and the model has {own} steps"
        raise OptionError(msg, where="n_steps", hint="leave it out; for fewer steps give a model with fewer")
    steps = own if given is None else given
    if steps is None:
        msg = f"a {type(model).__name__} does not say how many steps it has"
        raise OptionError(msg, where="n_steps", hint="n_steps=T, or sizes() with 'steps'")
    if steps < 1:
        msg = f"n_steps must be at least 1, got {steps}"
        raise OptionError(msg, where="n_steps", hint="n_steps=T")
    return steps


class _Lens:
    """Measures one kind after the other, and counts."""

    def __init__(
        self,
        model: Model,
        *,
        delta: float,
        n_steps: int,
        horizon: int,
        full: bool,
        progress: Callable[[str, int], None] | None,
    ) -> None:
        self._model, self._parameters = model, model.parameters()
        self._delta, self._n_steps, self._horizon, self._full = delta, n_steps, horizon, full
        self._progress = progress
        self.gradients, self.work = 0, 0.0
        self._eps = eps(next(iter(self._parameters.values())).dtype)
        self._whole = self._sample(none()) if full else None
        self._reference = Reference(self._whole.gradient if self._whole else ())
        self._counted: Counted = np.ones(len(self._parameters), bool)

    @property
    def full_seconds(self) -> float | None:
        """What the full gradient takes, if it was computed."""
        return None if self._whole is None else self._whole.seconds

    def curve(self, kind: str) -> SemanticsCurve:
        """One kind: followed until it stays below delta; then where it begins to."""
        samples: dict[int, _Sample] = {}
        beta, ages, least = None, self._ages() if kind == "window" else None, max(1, _block(kind))
        for some in lengths(self._n_steps if self._full and kind != "window" else self._horizon, least):
            if ages is None:
                samples |= {k: self._of(kind, k) for k in some}
            else:
                samples |= {k: self._aged(ages, k) for k in range(max(samples, default=0) + 1, some[-1] + 1)}
            if kind == "window":
                beta = self._look_beyond(samples)
            self._count(samples[least])
            if self._stays(samples, some[-2:]):
                break
        horizon = max(samples)
        self._bisect(kind, samples, least)
        points = tuple(self._point(kind, k, samples[k]) for k in sorted(samples))
        return SemanticsCurve(
            kind=kind,
            parameters=tuple(name for name, is_in in zip(self._parameters, self._counted, strict=True) if is_in),
            points=points,
            k=(k := smallest(points, self._delta)),
            horizon=horizon,
            beta=beta,
            extrapolated=None if k else self._extrapolated(points[-1], beta),
        )

    def _count(self, shortest: _Sample) -> None:
        """Take the tensors together that the shortest truncation changes."""
        missing = norms(difference(self._reference.gradient, shortest.gradient))
        self._counted = counted(missing[1:], norms(self._reference.gradient)[1:], self._eps)

    def _of(self, kind: str, k: int) -> _Sample:
        whole = self._whole if k == self._n_steps else None
        return whole or self._sample(truncation_of(kind, k))

    def _ages(self) -> Iterator[Gradients] | None:
        return self._model.windows(self._parameters) if isinstance(self._model, SupportsWindows) else None

    def _aged(self, ages: Iterator[Gradients], k: int) -> _Sample:
        """Window k, the next one of all; at a power of two the model's own, with the time that it takes."""
        gradient = self._flat(next(ages), Truncation("window", k))
        self.work += 1
        return self._of("window", k) if k & (k - 1) == 0 else _Sample(gradient, None)

    def _sample(self, truncation: Truncation) -> _Sample:
        model = cast("SupportsTruncation", self._model).with_truncation(truncation)
        found: Gradients = {}
        seconds = 0.0
        # frameworks that compile do so at the first call, which says nothing of the next thousand
        for _ in range(2 if isinstance(self._model, SupportsWindows) else 1):
            started = time.perf_counter()
            _, found = model.value_and_grad(self._parameters)
            seconds = time.perf_counter() - started
            self.gradients += 1
            self.work += _work(truncation, self._n_steps)
        if self._progress is not None:
            self._progress(str(truncation), self.gradients)
        return _Sample(self._flat(found, truncation), seconds)

    def _flat(self, found: Gradients, truncation: Truncation) -> Gradient:
        """By tensor, checked."""
        zeros = {name: np.zeros(p.shape) for name, p in self._parameters.items()}
        tensors = (zeros[name] if (g := found[name]) is None else g for name in zeros)
        gradient = tuple(np.asarray(tensor, np.float64).ravel() for tensor in tensors)
        size = norms(gradient)[0]
        if not np.isfinite(size) or (size == 0 and not truncation.cuts(self._n_steps)):
            msg = f"the gradient with {truncation} has norm {size}: no bias is relative to that"
            raise ModelContractError(msg, where="value_and_grad()", hint="measure where it is finite and not zero")
        return gradient

    def _look_beyond(self, windows: dict[int, _Sample]) -> float | None:
        """Beta; without the full gradient, what stands for it, too."""
        gradients = {k: sample.gradient for k, sample in windows.items()}
        longest = max(gradients)
        floor = _ROUNDINGS * self._eps * float(norms(gradients[longest])[0])
        if not self._full:
            whole = longest == self._n_steps
            self._reference = Reference(gradients[longest]) if whole else extrapolated(gradients, floor)
        return rate(gradients, floor)

    def _below(self, sample: _Sample) -> bool:
        return bool(self._reference.bias(sample.gradient, self._counted)[0] < self._delta)

    def _stays(self, samples: dict[int, _Sample], last: Sequence[int]) -> bool:
        """Whether the two last lengths are below delta: one may be by chance, a bias need not fall with every step."""
        return last[-1] == self._n_steps or (len(last) > 1 and all(self._below(samples[k]) for k in last))

    def _bisect(self, kind: str, samples: dict[int, _Sample], least: int) -> None:
        """Between the last length that is too biased and the next one that was looked at; the answer takes its time."""
        known = [least - 1, *sorted(samples)]
        low = [k for k in known if k < least or not self._below(samples[k])][-1]
        if low == known[-1]:
            return
        high = known[known.index(low) + 1]
        while high - low > 1:
            middle = (low + high) // 2
            samples[middle] = self._of(kind, middle)
            low, high = (low, middle) if self._below(samples[middle]) else (middle, high)
        if samples[high].seconds is None:
            samples[high] = self._of(kind, high)

    def _extrapolated(self, longest: BiasPoint, beta: float | None) -> int | None:
        """Where the bias would be delta if it went on falling by beta a step; at T it is zero."""
        if beta is None or not 0 < beta < 1 or not np.isfinite(longest.bias):
            return None
        further = np.log(self._delta / longest.bias) / np.log(beta)
        return min(self._n_steps, longest.k + max(1, int(np.ceil(further))))

    def _point(self, kind: str, k: int, sample: _Sample) -> BiasPoint:
        truncation = truncation_of(kind, k)
        total, *each = map(float, self._reference.bias(sample.gradient, self._counted))
        segments = truncation.segments(self._n_steps)
        steps = segments[:, 2] - segments[:, 0]
        return BiasPoint(
            k=k,
            bias=total,
            parameters=dict(zip(self._parameters, each, strict=True)),
            work=_work(truncation, self._n_steps),
            held=int(steps.max()),
            together=int(steps.sum()),
            seconds=sample.seconds,
        )


def _work(truncation: Truncation, n_steps: int) -> float:
    """Steps in all its segments, in sequences of n_steps."""
    segments = truncation.segments(n_steps)
    return float((segments[:, 2] - segments[:, 0]).sum()) / n_steps
