"""A training step as a model: its gradient is what the optimiser would see, its loss is the objective meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from gradaudit.arrays import Gradients, NamedArrays, Scalar
from gradaudit.backends.stepped import OverStep, by_rows, loss_among, unasked
from gradaudit.backends.torch.adapt import adapted
from gradaudit.backends.torch.broadcasts import over_pairs
from gradaudit.backends.torch.contents import Values
from gradaudit.backends.torch.cuts import listed, removed
from gradaudit.backends.torch.model import TorchModel, as_array
from gradaudit.backends.torch.narrow import narrowest
from gradaudit.backends.torch.state import Patches, optimisers_met, preserved
from gradaudit.backends.torch.stepping import OptimiserState, ScalerState, standing
from gradaudit.errors import ModelContractError
from gradaudit.protocols import Model, StepVariant
from gradaudit.sites import Broadcast, Cut

__all__ = ["StepModel", "step_model"]

Step: TypeAlias = Callable[[nn.Module], Any]


def step_model(
    target: Any, step: Step, *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
) -> StepModel | None:
    """A module and its training step; None: no module.

    Raises:
        ModelContractError: no parameter is trained.
    """
    if not isinstance(target, nn.Module):
        return None
    objective = adapted(target, None, loss=loss or unasked)
    assert isinstance(objective, TorchModel)  # of a module it is nothing else
    return StepModel(target, step, objective, sizes, returns=loss is None)


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What one run of the step did.

    Attributes:
        gradients: what the optimiser was given; None until there is an optimiser.
        parts: what each backward call added to ``.grad``, by parameter.
        rows: the leading size of the module's input before each backward call.
        scale: the loss scale that was last used.
        scaled: the gradient is multiplied by it now.
        begun: something was in ``.grad`` before the first backward call.
        clips: clipping calls, each whether the gradient was still scaled.
        returned: by the step.
    """

    gradients: dict[str, Tensor | None] | None = None
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    scale: float = 1.0
    scaled: bool = False
    begun: bool = False
    clips: list[bool] = field(default_factory=list)
    returned: Any = None


@final
class StepModel(OverStep):
    """The objective of a module, whose gradient is what a training step leaves.

    The gradient is read at the first ``optimizer.step()`` that the step calls, else from ``.grad`` after it. A step
    with an optimiser is a whole iteration: it runs twice from the same state, ``.grad`` left as it is in between.
    Parameters, buffers, attributes, modes, ``.grad``, optimisers and loss scalers are as before afterwards. A closure's
    own Python state (a data iterator, a scheduler) is not known, so not restored. The float64 twin is the objective's,
    with its own gradient; where the step returns the objective, it is the step's, run in float64.

    Args:
        module: what is trained.
        step: runs the step on it.
        objective: the loss that the step is meant for.
        sizes: the user's own sizes, by which a factor is named.
        returns: what the step returns is the loss instead; of the objective, parameters and devices count.
        empty: start from empty ``.grad``, and run once.
        clipping: False: clipping does nothing.
        weights: multiply what each backward call adds by its own number.
        uncut: cuts in the step through which the gradient flows all the same.
    """

    def __init__(
        self,
        module: nn.Module,
        step: Step,
        objective: TorchModel,
        sizes: Mapping[str, int],
        *,
        returns: bool = False,
        empty: bool = False,
        clipping: bool = True,
        weights: Sequence[float] | None = None,
        uncut: Collection[Cut] = (),
    ) -> None:
        super().__init__(objective, self._loss_of_step if returns else None)
        self._module, self._step, self._objective, self._sizes = module, step, objective, dict(sizes)
        self._empty, self._clipping, self._weights = empty, clipping, weights
        self._named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._seen: _Seen | None = None
        self._run_step = removed(lambda _: step(module), uncut) if uncut else lambda _: step(module)

    def narrow(self) -> float | None:
        """The narrower format of the objective, which is taken to be that of the step."""
        if self._returned is None:
            return super().narrow()
        with preserved():
            return narrowest(lambda: self.loss(self.parameters()), [p.device for p in self._named.values()])

    def twin(self) -> Model | None:
        """The objective in float64; where it is what the step returns, the step; None: it is float64 already."""
        if self._returned is None:
            return super().twin()
        here = self.parameters()
        wide = {name: p.astype(np.float64) for name, p in here.items()}
        return None if all(p.dtype == np.float64 for p in here.values()) else self._changed(self._objective.at(wide))

    def cuts(self) -> Sequence[Cut]:
        """Where the step cuts the gradient: see `gradaudit.backends.torch.cuts`."""
        with standing(self._module, self.parameters()) as optimisers:
            return listed(lambda _: self._run(optimisers, updating=False), self._named)

    def without(self, cuts: Collection[Cut]) -> StepModel | None:
        """The same objective with the gradient of the step without these cuts; None: one cannot be removed."""
        return self._changed(uncut=cuts) if all(cut.removable for cut in cuts) else None

    def holding(self, cuts: Collection[Cut]) -> Model | None:
        """The objective with what these lines cut off held, where it runs them too; None: the step returns it."""
        return self._objective.holding(cuts) if self._returned is None else None

    def broadcasts(self) -> Sequence[Broadcast]:
        """Where the objective is taken over pairs; where the step returns it, in one run of the step."""
        if self._returned is None:
            return super().broadcasts()
        return over_pairs(lambda: self.loss(self.parameters()), list(self._named.values()))

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The objective, and the gradient that the optimiser would see.

        Raises:
            ModelContractError: the step leaves no gradient at all, or gives its optimiser a closure.
        """
        with preserved():  # the step draws the random numbers that the loss has drawn
            value = self.loss(parameters)
        with standing(self._module, parameters) as optimisers:
            if self._empty:
                for p in self._named.values():
                    p.grad = None
            start = Values(self._module)
            with preserved():  # a second run draws the same random numbers, on every device
                seen = self._run(optimisers)
            if seen.gradients is not None and not self._empty:
                start.restore()  # all but the gradient, which is left from before
                again = self._run(optimisers)
                # nothing was left when it went backward: what else differs is state that the module does not hold
                seen = again if again.begun or not again.parts else seen
            found = seen.gradients or self._gradients()
        self._seen = seen
        if all(g is None for g in found.values()):
            msg = "the step leaves no gradient in any parameter's .grad"
            raise ModelContractError(msg, where="audit_step()", hint="call loss.backward() in the step")
        return value, {n: None if g is None else as_array(g) for n, g in found.items()}

    def sizes(self) -> Mapping[str, int]:
        """The user's sizes, and those of the step: its backward calls and its loss scale."""
        seen = self._seen or _Seen()
        return {**self._sizes, "micro-batches": len(seen.parts), "loss scale": int(seen.scale)}

    def variants(self) -> Sequence[StepVariant]:
        """The objective, and the step from empty gradients, without clipping, with micro-batches weighted by rows."""
        _, _ = self.value_and_grad(self.parameters())
        seen = self._seen or _Seen()
        kind = "forgotten" if seen.gradients is not None else "leftover"
        found = [*super().variants(), StepVariant(kind=kind, detail="", model=self._changed(empty=True))]
        if seen.clips:
            detail = f"while scaled by {seen.scale:g}" if any(seen.clips) else ""
            found.append(StepVariant(kind="clipped", detail=detail, model=self._changed(clipping=False)))
        # weights would also scale what was there before, and so explain two faults as one
        if not seen.begun and len(seen.rows) == len(seen.parts):
            for detail, weights in by_rows(seen.rows):
                found.append(StepVariant(kind="weights", detail=detail, model=self._changed(weights=weights)))
        return found

    def _changed(self, objective: TorchModel | None = None, **changes: Any) -> StepModel:
        parts = self._module, self._step, objective or self._objective, self._sizes
        return StepModel(*parts, returns=self._returned is not None, **changes)

    def _loss_of_step(self, parameters: NamedArrays) -> Any:
        with standing(self._module, parameters) as optimisers:
            value = loss_among(self._run(optimisers, updating=False).returned, parameters, lambda _: None)
            return as_array(value, "the loss") if isinstance(value, Tensor) else value

    def _gradients(self) -> dict[str, Tensor | None]:
        return {n: None if p.grad is None else p.grad.detach().clone() for n, p in self._named.items()}

    def _run(self, optimisers: dict[int, Any], *, updating: bool = True) -> _Seen:
        """One run of the step.

        Args:
            optimisers: those that are met, by identity, are put here.
            updating: False: optimisers find no gradient, and so update nothing.
        """
        seen, rows = _Seen(), [0]
        mine = {id(p) for p in self._named.values()}

        def before_step(optimiser: Any, args: Any, kwargs: Any) -> Iterable[Tensor]:
            if any(callable(x) for x in (*args, *kwargs.values())):
                msg = f"{type(optimiser).__name__}.step() is given a closure: no one gradient is that of the step"
                raise ModelContractError(msg, where="audit_step()", hint="audit what the closure does as the step")
            optimisers.setdefault(id(optimiser), OptimiserState(optimiser))
            held = {id(p): p for group in optimiser.param_groups for p in group["params"]}
            if seen.gradients is None and held.keys() & mine:
                seen.gradients = self._gradients()
            return () if updating else held.values()

        def before_forward(_: nn.Module, args: Any) -> None:
            rows[0] = next((x.shape[0] for x in args if isinstance(x, Tensor) and x.dim()), 0)

        with ExitStack() as stack:
            stack.enter_context(optimisers_met(before_step))
            stack.callback(self._module.register_forward_pre_hook(before_forward).remove)
            stack.enter_context(Patches(lambda patches: self._install(patches, seen, rows, optimisers)).held())
            seen.returned = self._run_step(self._named)
        return seen

    def _install(self, patches: Patches, seen: _Seen, rows: list[int], optimisers: dict[int, Any]) -> None:
        backward, scaler = torch.autograd.backward, torch.amp.GradScaler
        scale, unscale = scaler.scale, scaler.unscale_

        def counted(*args: Any, **kwargs: Any) -> None:
            before = self._gradients()
            if not seen.parts:
                seen.begun = any(g is not None and bool(g.any()) for g in before.values())
            backward(*args, **kwargs)
            weight = 1.0 if self._weights is None else self._weights[len(seen.parts) % len(self._weights)]
            part = {}
            for name, p in self._named.items():
                if p.grad is None:
                    continue
                old = before[name]
                part[name] = p.grad.detach() - (0 if old is None else old)
                if self._weights is not None:
                    p.grad = part[name] * weight + (0 if old is None else old)
            seen.parts.append(part)
            seen.rows.append(rows[0])

        def scaling(self_: Any, outputs: Any) -> Any:
            optimisers.setdefault(id(self_), ScalerState(self_))
            scaled = scale(self_, outputs)
            seen.scale, seen.scaled = self_.get_scale(), True
            return scaled

        def unscaling(self_: Any, optimiser: Any) -> None:
            optimisers.setdefault(id(self_), ScalerState(self_))
            unscale(self_, optimiser)
            seen.scaled = False

        patches.put(torch.autograd, "backward", counted)
        patches.put(scaler, "scale", scaling)
        patches.put(scaler, "unscale_", unscaling)
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            patches.put(nn.utils, name, self._clip(getattr(nn.utils, name), seen))

    def _clip(self, original: Callable[..., Any], seen: _Seen) -> Callable[..., Any]:
        def clip(*args: Any, **kwargs: Any) -> Any:
            seen.clips.append(seen.scaled)
            return original(*args, **kwargs) if self._clipping else torch.zeros(())

        return clip
