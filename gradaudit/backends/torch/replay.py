"""A hand-written PyTorch forward run again: recorded by autograd, or differentiated by differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradaudit.backends.torch.functions import Rule

__all__ = [
    "Context",
    "Differences",
    "NotDifferentiableError",
    "Primal",
    "Tensors",
    "is_float",
    "normal",
    "paired",
    "rewound",
    "unit",
    "unpacked",
]

Tensors: TypeAlias = dict[int, Tensor]

#: Steps of the differences, relative to the size of an input, where they are taken in float64 and where they are not.
_STEPS = {True: 1e-4, False: 3e-2}
#: A derivative by differences takes so many entries at most.
_MOST_ENTRIES = 512


class NotDifferentiableError(RuntimeError):
    """A primal leaves PyTorch, and its derivative by differences would take too many evaluations."""


def is_float(x: Any) -> bool:
    """A tensor that can have a gradient."""
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _is_in(x: Any, values: Sequence[Any]) -> bool:
    return any(x is value for value in values)


def paired(one: Tensor, other: Tensor) -> float:
    """The inner product that a gradient and a direction have, of complex numbers as well."""
    return float((one.conj() * other).real.sum())


def unpacked(results: Any) -> tuple[Any, ...]:
    """What a method returned: several, or one."""
    return results if isinstance(results, tuple) else (results,)


@contextmanager
def rewound(state: Tensor | None) -> Iterator[None]:
    """Random numbers from this state on, meanwhile; None: none are drawn."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        yield


class Context:
    """What a forward may do to its ctx."""

    def __init__(self, needs: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs
        self.saved_tensors: tuple[Any, ...] = ()
        self.dirty: tuple[Any, ...] = ()
        self.constant: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Kept; there are no hooks around."""
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """Forward mode is not asked for."""

    def mark_dirty(self, *tensors: Any) -> None:
        """Kept."""
        self.dirty = tensors

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """Kept."""
        self.constant = tensors

    def set_materialize_grads(self, value: Any) -> None:
        """Those who differentiate the primal take both."""


class Primal:
    """One run of a forward, recorded by autograd.

    Args:
        rule: whose forward.
        args: of the forward; those that require a gradient are told apart by identity.
        connected: the record goes on to where the arguments come from.
    """

    def __init__(self, rule: Rule, args: Sequence[Any], *, connected: bool = False) -> None:
        self.rule, self.args = rule, args
        random = torch.get_rng_state()
        needs = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        wanted = [a for a, needed in zip(args, needs, strict=True) if needed]
        # unseen by those who watch this thread for cuts
        with torch.enable_grad(), torch._C.DisableTorchFunction():  # noqa: SLF001
            self.leaves = {id(a): a if connected else a.detach().requires_grad_() for a in wanted}
            copies = {i: leaf.clone() for i, leaf in self.leaves.items()}  # a leaf cannot be changed in place
        self.given = tuple(copies.get(id(a), a) for a in args)
        self._versions = {i: copy._version for i, copy in copies.items()}  # noqa: SLF001
        self.context = Context(needs)
        # saved as they are: what is around, checkpointing for example, counts what a forward saves
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_identity, _identity):
            self.output = rule.primal(self.context, self.given)
        self.random = None if torch.equal(random, torch.get_rng_state()) else random
        if rule.setup_context is not None:
            with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
                rule.setup_context(self.context, self.given, self.output)
        self.outputs = unpacked(self.output)

    def passed(self) -> Any:
        """The outputs as a forward would return them, after its changes in place; grad mode is off in there."""
        with torch._C.DisableTorchFunction():  # noqa: SLF001
            for i, copy in enumerate(self.given):
                if self._changed(i):
                    self.args[i].copy_(copy)
            outputs = tuple(map(self._passed, self.outputs))
        return outputs if isinstance(self.output, tuple) else outputs[0]

    def settle(self, ctx: Any, output: Any) -> None:
        """Tell the real ctx what the forward told its own."""
        if dirty := [a for a, given in zip(self.args, self.given, strict=True) if _is_in(given, self.context.dirty)]:
            ctx.mark_dirty(*dirty)
        pairs = zip(unpacked(output), self.outputs, strict=True)
        if constant := [out for out, own in pairs if _is_in(own, self.context.constant)]:
            ctx.mark_non_differentiable(*constant)
        ctx.save_for_backward(*(a if needed else None for a, needed in self._needed()))

    def back(self, ctx: Any, grads: Sequence[Any]) -> tuple[Any, ...]:
        """The gradients of the arguments; where one is given twice, at its first place."""
        if torch.is_grad_enabled():  # to be differentiated again: record once more, on what is connected
            pairs = zip(self._needed(), ctx.saved_tensors, strict=True)
            args = [saved if needed else a for (a, needed), saved in pairs]
            with rewound(self.random):
                primal = Primal(self.rule, args, connected=True)
            found = primal.gradients(grads, create_graph=True)
            return primal.placed(found)
        found = self.gradients(grads)
        return self.placed(self._by_differences(grads) if found is None else found)

    def gradients(self, grads: Sequence[Any], *, create_graph: bool = False) -> Tensors | None:
        """By the identity of an argument; None where an output that counts has lost its record."""
        pairs = [(out, g) for out, g in zip(self.outputs, grads, strict=False) if self._counts(out) and g is not None]
        if any(not out.requires_grad and bool(g.any()) for out, g in pairs):
            return None
        pairs = [(out, g) for out, g in pairs if out.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(self.leaves)
        if pairs and self.leaves:
            outputs, given = zip(*pairs, strict=True)
            options = {"allow_unused": True, "retain_graph": True, "create_graph": create_graph}
            found = torch.autograd.grad(outputs, list(self.leaves.values()), given, **options)
        zipped = zip(self.leaves.items(), found, strict=True)
        return {i: torch.zeros_like(leaf) if g is None else g for (i, leaf), g in zipped}

    def placed(self, found: Tensors | None) -> tuple[Any, ...]:
        """For each argument what goes back to it."""
        if found is None:
            raise NotDifferentiableError(self.rule.site.name)
        left = dict(found)
        return tuple(left.pop(id(a), None) for a in self.args)

    def _by_differences(self, grads: Sequence[Any]) -> Tensors | None:
        differences = Differences(self.rule, self.args, grads, self.random)
        if differences.along(differences.direction(self.leaves)) == (0.0, 0.0):  # a step function
            return {i: torch.zeros_like(leaf) for i, leaf in self.leaves.items()}
        if sum(leaf.numel() for leaf in self.leaves.values()) > _MOST_ENTRIES:
            return None
        return {i: differences.gradient(i, leaf) for i, leaf in self.leaves.items()}

    def _needed(self) -> list[tuple[Any, bool]]:
        return list(zip(self.args, self.context.needs_input_grad, strict=True))

    def _changed(self, i: int) -> bool:
        version = self._versions.get(id(self.args[i]))
        return version is not None and self.given[i]._version != version  # noqa: SLF001

    def _passed(self, out: Any) -> Any:
        if not isinstance(out, Tensor):
            return out
        place = next((i for i, given in enumerate(self.given) if given is out), None)
        if place is not None and (self._changed(place) or not self.context.needs_input_grad[place]):
            return self.args[place]
        return out.detach()

    def _counts(self, out: Any) -> bool:
        return is_float(out) and not _is_in(out, self.context.constant)


def _identity(tensor: Tensor) -> Tensor:
    return tensor


class Differences:
    """A primal's directional derivatives, weighted by gradients of its outputs, by differences of fourth order."""

    def __init__(self, rule: Rule, args: Sequence[Any], grads: Sequence[Any], random: Tensor | None) -> None:
        self._rule, self._args, self._grads, self._random = rule, args, grads, random
        self._generator = torch.Generator().manual_seed(0)
        self._double = True
        self._middle: list[Any] | None = None
        try:
            self._middle = self._outputs({}, 0.0)
        except Exception:  # noqa: BLE001  # a constant of another dtype, a kernel that has no float64, ...
            self._double = False

    def outputs(self) -> list[Any]:
        """Of the primal, run again."""
        return self._outputs({}, 0.0)

    def direction(self, arguments: Mapping[int, Tensor]) -> Tensors:
        """Random, in each argument about as large as the argument."""
        return {i: normal(x, self._generator) * unit(x) for i, x in arguments.items()}

    def along(self, direction: Tensors) -> tuple[float, float]:
        """The derivative along a direction, and its uncertainty, a kink at the very point included."""
        (coarse, wide), (fine, narrow) = (self._slope(direction, _STEPS[self._double] / k) for k in (1, 8))
        # of a smooth function the two sides come together as the step shrinks
        return fine, abs(fine - coarse) + (narrow if 4 * narrow > wide else 0.0)

    def gradient(self, argument: int, x: Tensor) -> Tensor:
        """One entry after another."""
        scale = unit(x)
        moved = torch.zeros_like(x, dtype=_wide(x)).detach()
        found = torch.zeros_like(moved)
        for entry in range(x.numel()):
            for one in (1.0, 1j) if x.is_complex() else (1.0,):
                moved.view(-1)[entry] = one * scale
                found.view(-1)[entry] += one * self._slope({argument: moved}, _STEPS[self._double])[0] / scale
                moved.view(-1)[entry] = 0
        return found.to(x.dtype)

    def _slope(self, direction: Tensors, step: float) -> tuple[float, float]:
        """The derivative, and by how much its two sides lie apart."""
        if self._middle is None:
            self._middle = self._outputs({}, 0.0)
        ahead, back, far_ahead, far_back = (self._outputs(direction, step * k) for k in (1, -1, 2, -2))
        slope = apart = 0.0
        for i, (g, middle) in enumerate(zip(self._grads, self._middle, strict=False)):
            if g is not None and is_float(middle):
                wide = g.detach().to(_wide(g))
                slope += 8 * paired(wide, ahead[i] - back[i]) - paired(wide, far_ahead[i] - far_back[i])
                apart += float((wide.abs() * (ahead[i] + back[i] - 2 * middle).abs()).sum())
        return slope / (12 * step), apart / (2 * step)

    def _outputs(self, direction: Tensors, step: float) -> list[Any]:
        copies = {id(a): a.detach().clone() for a in self._args if isinstance(a, Tensor)}
        for i, copy in copies.items():
            if is_float(copy) and self._double:
                copies[i] = copy.to(_wide(copy))
            if i in direction:
                copies[i] += (step * direction[i]).to(copies[i].dtype)
        needs = tuple(isinstance(a, Tensor) and a.requires_grad for a in self._args)
        with torch.no_grad(), rewound(self._random):
            outputs = unpacked(self._rule.primal(Context(needs), [copies.get(id(a), a) for a in self._args]))
        return [out.to(_wide(out)).clone() if is_float(out) else out for out in outputs]


def unit(x: Tensor) -> float:
    """How large its entries are: their root mean square, if that is not zero."""
    size = float(x.detach().abs().double().square().mean().sqrt()) if x.numel() else 0.0
    return size if size > 0 and math.isfinite(size) else 1.0


def normal(x: Tensor, generator: Any) -> Tensor:
    """Random numbers in double precision, one for each entry."""
    return torch.randn(x.shape, generator=generator, dtype=_wide(x), device="cpu").to(x.device)


def _wide(x: Tensor) -> Any:
    return torch.complex128 if x.is_complex() else torch.float64
