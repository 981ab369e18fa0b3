"""Hand-written PyTorch derivatives beside the derivatives of their own primals: compared, and replaced.

A rule is compared on the inputs and the incoming gradients of the loss itself, so that an error is one of the gradient
at hand. The derivative of the primal is its forward, recorded by autograd, and confirmed by differences: a forward may
itself cut what autograd sees of it (NumPy, ``no_grad``, ``detach``), and then the differences count. The error is
infinite where that derivative is zero and the rule's is not, as of a straight-through estimator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradaudit.backends.torch.functions import Handler, Rule, handling
from gradaudit.backends.torch.replay import (
    Context,
    Differences,
    Primal,
    Tensors,
    is_float,
    normal,
    paired,
    rewound,
    unit,
    unpacked,
)
from gradaudit.sites import CustomRule

__all__ = ["Replacing", "compared", "replacing"]

#: The derivative by autograd is that of the forward, if differences agree as well as this.
_CONFIRMED = 1e-3
#: Gradients that differ by so many eps of what goes through the rule do not differ.
_ROUNDING = 64.0
_N_DIRECTIONS = 3
#: So many executions of a class are compared, and so many of all that one line has written.
_KEPT, _MOST_KEPT = 5, 30
#: Errors above so many eps may be those of a kink; then the rule is compared so far away, relative to an input's size.
_OPEN, _BESIDE = 1e3, 1e-2


class Replacing(Handler):
    """Rules are the derivatives of their primals: these rules, and those that run inside such a primal."""

    precedes = True

    def __init__(self, rules: Collection[CustomRule] | None) -> None:
        self._rules = None if rules is None else frozenset(rules)
        self._inside = 0

    def handles(self, rule: Rule) -> bool:
        """Whether it replaces this one; inside a transform of `torch.func` it cannot."""
        if torch._C._are_functorch_transforms_active():  # noqa: SLF001
            return False
        return self._rules is None or self._inside > 0 or rule.site in self._rules

    def run(self, rule: Rule, ctx: Any, args: Sequence[Any]) -> tuple[Any, Any]:  # noqa: ARG002
        """The forward, recorded."""
        self._inside += 1
        try:
            primal = Primal(rule, args)
        finally:
            self._inside -= 1
        return primal.passed(), primal

    def settle(self, rule: Rule, ctx: Any, args: Sequence[Any], output: Any, note: Any) -> None:  # noqa: ARG002
        """What the forward told its ctx."""
        note.settle(ctx, output)

    def back(self, rule: Rule, ctx: Any, note: Any, grads: Sequence[Any]) -> Any:  # noqa: ARG002
        """The gradients by autograd, or by differences."""
        self._inside += 1
        try:
            return note.back(ctx, grads)
        finally:
            self._inside -= 1


@contextmanager
def replacing(rules: Collection[CustomRule]) -> Iterator[None]:
    """Meanwhile, in this thread, these rules are the derivatives of their primals.

    Raises:
        NotDifferentiableError: a primal has none, in the backward pass.
    """
    if not rules:
        yield
        return
    # checkpointed forwards run again in the backward pass: in this thread
    with torch.autograd.set_multithreading_enabled(False), handling(Replacing(rules)):
        yield


@dataclass(slots=True, eq=False)
class _Sample:
    """One execution of a rule in the loss: what went in, and what came back."""

    rule: Rule
    args: list[Any]
    random: Tensor
    outputs: tuple[Any, ...] = ()
    grads: tuple[Any, ...] | None = None
    results: tuple[Any, ...] = ()


class _Watching(Handler):
    """Counts the executions whose backward runs, and keeps some of them."""

    def __init__(self, kept: Collection[int] = ()) -> None:
        self.live: dict[CustomRule, dict[int, Rule]] = {}
        self.samples: dict[int, _Sample] = {}
        self._kept = kept
        self._count = 0

    def handles(self, rule: Rule) -> bool:  # noqa: ARG002
        """All of them."""
        return True

    def run(self, rule: Rule, ctx: Any, args: Sequence[Any]) -> tuple[Any, Any]:
        """The forward as it is; the note is its ordinal."""
        ordinal = self._count
        self._count += 1
        if ordinal in self._kept and not torch._C._are_functorch_transforms_active():  # noqa: SLF001
            self.samples[ordinal] = _Sample(rule, _copied(args), torch.get_rng_state())
        output = rule.run(ctx, args)
        if ordinal in self.samples:
            self.samples[ordinal].outputs = _plain(unpacked(output))
        return output, ordinal

    def settle(self, rule: Rule, ctx: Any, args: Sequence[Any], output: Any, note: Any) -> None:  # noqa: ARG002
        """As it is."""
        if rule.setup_context is not None:
            rule.setup_context(ctx, args, output)

    def back(self, rule: Rule, ctx: Any, note: Any, grads: Sequence[Any]) -> Any:
        """The backward as it is."""
        self.live.setdefault(rule.site, {})[note] = rule
        sample = self.samples.get(note)
        if sample is None or sample.grads is not None:
            return rule.differentiate(ctx, grads)
        sample.grads = _plain(grads)
        results = rule.differentiate(ctx, grads)
        sample.results = _plain(unpacked(results))
        return results


def _copied(values: Sequence[Any]) -> list[Any]:
    """Tensors as they are now; one that is given twice stays one."""
    copies = {}
    with torch._C.DisableTorchFunction():  # noqa: SLF001
        for x in values:
            if isinstance(x, Tensor):
                copy = x.detach().to_dense() if x.is_sparse else x.detach().clone()
                copies[id(x)] = copy.requires_grad_() if x.requires_grad else copy
    return [copies.get(id(x), x) for x in values]


def _plain(values: Sequence[Any]) -> tuple[Any, ...]:
    """As they are now, without the record of a second derivative."""
    return tuple(x.detach() if isinstance(x, Tensor) else x for x in _copied(values))


def compared(gradient: Callable[[], Any]) -> tuple[CustomRule, ...]:
    """The rules that a gradient runs, in the order of their first execution, each beside its primal.

    The gradient is taken twice: to count the executions, and to keep some of each rule.

    Args:
        gradient: takes the same gradient each time.
    """
    with handling(counting := _Watching()):
        gradient()
    runs = {site: sorted(live) for site, live in counting.live.items()}
    if not runs:
        return ()
    kept = {site: _some(live) for site, live in counting.live.items()}
    with handling(keeping := _Watching(frozenset(n for ordinals in kept.values() for n in ordinals))):
        gradient()
    found = []
    with handling(Replacing(None)):
        for site in sorted(runs, key=lambda site: runs[site][0]):
            samples = [s for n in kept[site] if (s := keeping.samples.get(n)) is not None and s.rule.site == site]
            errors = [(e, i) for e, i in map(_error, samples) if not math.isnan(e)]
            error, argument = max(errors, default=(math.nan, 0), key=lambda pair: pair[0])
            found.append(replace(site, executions=len(runs[site]), error=error, argument=argument))
    return tuple(found)


def _some(live: Mapping[int, Rule]) -> list[int]:
    """The first, the last and some between; of each class, where one line has written several."""
    classes: dict[Rule, list[int]] = {}
    for ordinal in sorted(live):
        classes.setdefault(live[ordinal], []).append(ordinal)
    return _spread(sorted(n for ordinals in classes.values() for n in _spread(ordinals, _KEPT)), _MOST_KEPT)


def _spread(ordinals: Sequence[int], n: int) -> list[int]:
    last = len(ordinals) - 1
    return sorted({ordinals[last * i // (n - 1)] for i in range(n)})


def _error(sample: _Sample, *, beside: bool = False) -> tuple[float, int]:
    """The largest relative error over the inputs, and at which; NaN where it cannot be taken.

    At a kink, such as a ReLU has at zero, rule and primal may both be right and differ; then they are compared beside.
    """
    if sample.grads is None or not any(isinstance(g, Tensor) and g.any() for g in sample.grads):
        return math.nan, 0
    if not all(bool(torch.isfinite(g).all()) for g in (*sample.grads, *sample.results) if isinstance(g, Tensor)):
        return math.nan, 0
    wanted = [a for a in sample.args if isinstance(a, Tensor) and a.requires_grad]
    firsts = {id(a): k for k, a in reversed(list(enumerate(wanted)))}
    arguments = {id(a): a for a in wanted}
    own = _summed(sample, arguments)
    try:
        differences = Differences(sample.rule, sample.args, sample.grads, sample.random)
        if not all(map(_repeated, sample.outputs, differences.outputs())):
            return math.nan, 0
        truth, through = _recorded(sample)
        told, confirmed = (True, False) if truth is None else _told(differences, arguments, own, truth)
        if truth is not None and confirmed:
            errors = {i: _relative(own[i], truth[i], x, through) for i, x in arguments.items()}
        else:
            errors = {i: _along(differences, i, x, own[i]) for i, x in arguments.items()}
        worst = max(errors, key=lambda i: (not math.isnan(errors[i]), errors[i]))
        rounding = _OPEN * torch.finfo(arguments[worst].dtype).eps
        if not beside and (math.isnan(errors[worst]) or (errors[worst] > rounding and not told)):
            return _error(_moved(sample), beside=True)
    except Exception:  # noqa: BLE001  # the primal cannot be run again
        return math.nan, 0
    return errors[worst], firsts[worst]


def _moved(sample: _Sample) -> _Sample:
    """The rule, forward and backward, at a point nearby."""
    assert sample.grads is not None  # see _error
    generator = torch.Generator().manual_seed(0)
    moved = _Sample(sample.rule, _copied(sample.args), sample.random, grads=sample.grads)
    wanted = {id(a): a for a in moved.args if isinstance(a, Tensor) and a.requires_grad}
    with torch.no_grad(), rewound(sample.random):
        for a in wanted.values():
            a.add_((_BESIDE * unit(a) * normal(a, generator)).to(a.dtype))
        args = _copied(moved.args)
        context: Any = Context(tuple(isinstance(a, Tensor) and a.requires_grad for a in args))
        output = sample.rule.run(context, args)
        if sample.rule.setup_context is not None:
            sample.rule.setup_context(context, tuple(args), output)
        moved.outputs = _plain(unpacked(output))
        moved.results = _plain(unpacked(sample.rule.differentiate(context, sample.grads)))
    return moved


def _repeated(before: Any, again: Any) -> bool:
    """Whether a forward gives what it gave: it may draw random numbers of its own, or keep a state."""
    if not is_float(before):
        return True
    gap, size = float((before - again).norm()), float(before.norm())
    return not gap > math.sqrt(torch.finfo(before.dtype).eps) * size


def _summed(sample: _Sample, arguments: Tensors) -> Tensors:
    """What the rule returned for each argument; for one that was passed twice, the sum."""
    own = {i: torch.zeros_like(x).detach() for i, x in arguments.items()}
    for a, result in zip(sample.args, sample.results, strict=False):
        if id(a) in own and isinstance(result, Tensor):
            own[id(a)] = own[id(a)] + result.sum_to_size(a.shape)
    return own


def _recorded(sample: _Sample) -> tuple[Tensors | None, float]:
    """The gradients of the primal by autograd, None where it records nothing; and the size of what goes through it."""
    # what is not differentiated may be changed by the forward: running statistics
    args = [a.clone() if isinstance(a, Tensor) and not a.requires_grad else a for a in sample.args]
    assert sample.grads is not None  # see _error
    with rewound(sample.random):
        try:
            primal = Primal(sample.rule, args)
            truth = primal.gradients(sample.grads)
        except RuntimeError:  # changes in place what it needs, for example
            return None, 0.0
    pairs = zip(primal.outputs, sample.grads, strict=False)
    sizes = [float(out.detach().norm() * g.norm()) for out, g in pairs if g is not None and is_float(out)]
    return truth, math.hypot(*sizes)


def _told(differences: Differences, arguments: Tensors, own: Tensors, truth: Tensors) -> tuple[bool, bool]:
    """Whether differences can tell the rule from autograd; and are not of another mind than autograd."""
    direction = differences.direction(arguments)
    try:
        slope, noise = differences.along(direction)
    except Exception:  # noqa: BLE001  # see Differences
        return True, True
    by_autograd, by_rule = (sum(paired(g[i], v) for i, v in direction.items()) for g in (truth, own))
    size = math.hypot(*(float(truth[i].norm()) * unit(x) for i, x in arguments.items()))
    told = abs(by_autograd - by_rule) > 4 * noise
    if not math.isfinite(slope) or noise > 0.1 * abs(slope):
        return told, True
    gap = abs(by_autograd - slope)
    return told, gap <= 4 * noise + _CONFIRMED * size or gap < 0.5 * abs(by_rule - slope)


def _relative(own: Tensor, truth: Tensor, x: Tensor, through: float) -> float:
    gap, size = float((own - truth).norm()), float(truth.norm())
    one = max(float(x.detach().norm()), math.sqrt(x.numel()))
    if gap * one <= _ROUNDING * torch.finfo(x.dtype).eps * through:
        return min(gap / size, torch.finfo(x.dtype).eps) if size > 0 else 0.0
    return gap / size if size > 0 else math.inf


def _along(differences: Differences, argument: int, x: Tensor, own: Tensor) -> float:
    """The relative error along a few directions, less what the differences themselves leave open."""
    gaps, slopes, noises = [], [], []
    for _ in range(_N_DIRECTIONS):
        direction = differences.direction({argument: x})
        slope, noise = differences.along(direction)
        by_rule = paired(own, direction[argument])
        gaps.append(max(abs(by_rule - slope) - 4 * noise, 0.0))
        slopes.append(slope)
        noises.append(noise)
    gap, size, noise = math.hypot(*gaps), math.hypot(*slopes), math.hypot(*noises)
    if not math.isfinite(gap) or (gap == 0 < noise and noise > 0.1 * size):
        return math.nan
    return gap / size if size > 0 else math.inf if gap > 0 else 0.0
