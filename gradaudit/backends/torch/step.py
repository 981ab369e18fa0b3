"""A training step as a model: its gradient is what the optimiser would see, its loss is the objective meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradaudit.arrays import Gradients, NamedArrays, Scalar
from gradaudit.backends.over import OverModel
from gradaudit.backends.torch.adapt import adapted
from gradaudit.backends.torch.model import TorchModel, as_array, as_tensor
from gradaudit.backends.torch.state import Patches, preserved
from gradaudit.errors import ModelContractError
from gradaudit.protocols import StepVariant

__all__ = ["StepModel", "step_model"]

Step: TypeAlias = Callable[[nn.Module], Any]


def step_model(
    target: Any, step: Step, *, loss: Callable[..., Any] | None, sizes: Mapping[str, int]
) -> StepModel | None:
    """A module and its training step; None: no module.

    Raises:
        ModelContractError: there is no loss, or no parameter that is trained.
    """
    if not isinstance(target, nn.Module):
        return None
    objective = adapted(target, None, loss=loss)
    assert isinstance(objective, TorchModel)  # of a module it is nothing else
    return StepModel(target, step, objective, sizes)


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
    """

    gradients: dict[str, Tensor | None] | None = None
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    scale: float = 1.0
    scaled: bool = False
    begun: bool = False
    clips: list[bool] = field(default_factory=list)


@final
class StepModel(OverModel):
    """The objective of a module, whose gradient is what a training step leaves.

    The gradient is read at the first ``optimizer.step()`` that the step calls, else from ``.grad`` after it. A step
    with an optimiser is a whole iteration: it runs twice from the same parameters, ``.grad`` left as it is in between.
    Parameters, buffers, ``.grad``, optimisers and loss scalers are as before afterwards. A closure's own Python state
    (a data iterator, a scheduler) is not known, so not restored. The float64 twin is the objective's, with its
    own gradient.

    Args:
        module: what is trained.
        step: runs the step on it.
        objective: the loss that the step is meant for.
        sizes: the user's own sizes, by which a factor is named.
        empty: start from empty ``.grad``, and run once.
        clipping: False: clipping does nothing.
        weights: multiply what each backward call adds by its own number.
    """

    def __init__(
        self,
        module: nn.Module,
        step: Step,
        objective: TorchModel,
        sizes: Mapping[str, int],
        *,
        empty: bool = False,
        clipping: bool = True,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(objective)
        self._module, self._step, self._objective, self._sizes = module, step, objective, dict(sizes)
        self._empty, self._clipping, self._weights = empty, clipping, weights
        self._named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._seen: _Seen | None = None

    def value_and_grad(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        """The objective, and the gradient that the optimiser would see.

        Raises:
            ModelContractError: the step leaves no gradient at all, or gives its optimiser a closure.
        """
        with preserved():  # the step draws the random numbers that the loss has drawn
            value = self._objective.loss(parameters)
        with torch.inference_mode(mode=False), torch.enable_grad(), _restored(self._module) as optimisers:
            with torch.no_grad():
                for name, p in self._named.items():
                    p.copy_(as_tensor(parameters[name], p.device))
            if self._empty:
                for p in self._named.values():
                    p.grad = None
            with preserved():  # a second run draws the same random numbers, on every device
                seen = self._run(optimisers)
            if seen.gradients is not None and not self._empty:
                # where parameters were updated, put them back: the same point, the gradient left from before
                with torch.no_grad():
                    for name, p in self._named.items():
                        p.copy_(as_tensor(parameters[name], p.device))
                seen = self._run(optimisers)
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
        """The step from empty gradients, without clipping, and with micro-batches weighted by their rows."""
        _, _ = self.value_and_grad(self.parameters())
        seen = self._seen or _Seen()
        kind = "forgotten" if seen.gradients is not None else "leftover"
        found = [StepVariant(kind=kind, detail="", model=self._changed(empty=True))]
        if seen.clips:
            detail = f"while scaled by {seen.scale:g}" if any(seen.clips) else ""
            found.append(StepVariant(kind="clipped", detail=detail, model=self._changed(clipping=False)))
        # weights would also scale what was there before, and so explain two faults as one
        if not seen.begun and len(seen.parts) > 1 and len(seen.rows) == len(seen.parts) and len(set(seen.rows)) > 1:
            total, count = sum(seen.rows), len(seen.rows)
            for each in (count, 1):
                weights = [rows * each / total for rows in seen.rows]
                detail = ", ".join(
                    f"micro-batch {i} ({rows} of {total} rows) counts {1 / w:.3g} times"
                    for i, (rows, w) in enumerate(zip(seen.rows, weights, strict=True), 1)
                )
                found.append(StepVariant(kind="weights", detail=detail, model=self._changed(weights=weights)))
        return found

    def _changed(
        self, *, empty: bool = False, clipping: bool = True, weights: Sequence[float] | None = None
    ) -> StepModel:
        parts = self._module, self._step, self._objective, self._sizes
        return StepModel(*parts, empty=empty, clipping=clipping, weights=weights)

    def _gradients(self) -> dict[str, Tensor | None]:
        return {n: None if p.grad is None else p.grad.detach().clone() for n, p in self._named.items()}

    def _run(self, optimisers: dict[int, Any]) -> _Seen:
        seen, rows = _Seen(), [0]
        mine = {id(p) for p in self._named.values()}

        def before_step(optimiser: Any, args: Any, kwargs: Any) -> None:
            if any(callable(x) for x in (*args, *kwargs.values())):
                msg = f"{type(optimiser).__name__}.step() is given a closure: no one gradient is that of the step"
                raise ModelContractError(msg, where="audit_step()", hint="audit what the closure does as the step")
            optimisers.setdefault(id(optimiser), _Optimiser(optimiser))
            held = {id(p) for group in optimiser.param_groups for p in group["params"]}
            if seen.gradients is None and held & mine:
                seen.gradients = self._gradients()

        def before_forward(_: nn.Module, args: Any) -> None:
            rows[0] = next((x.shape[0] for x in args if isinstance(x, Tensor) and x.dim()), 0)

        hooks = [register_optimizer_step_pre_hook(before_step), self._module.register_forward_pre_hook(before_forward)]
        try:
            with Patches(lambda patches: self._install(patches, seen, rows, optimisers)).held():
                self._step(self._module)
        finally:
            for hook in hooks:
                hook.remove()
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
            optimisers.setdefault(id(self_), _Scaler(self_))
            scaled = scale(self_, outputs)
            seen.scale, seen.scaled = self_.get_scale(), True
            return scaled

        def unscaling(self_: Any, optimiser: Any) -> None:
            optimisers.setdefault(id(self_), _Scaler(self_))
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


class _Optimiser:
    """An optimiser's state, to be put back into the same tensors."""

    def __init__(self, optimiser: Any) -> None:
        self._optimiser = optimiser
        self._groups = [dict(group) for group in optimiser.param_groups]
        self._state = {
            p: (s, {k: (v, v.clone() if isinstance(v, Tensor) else v) for k, v in s.items()})
            for p, s in optimiser.state.items()
        }
        self._params = [(p, p.detach().clone()) for group in self._groups for p in group["params"]]

    def restore(self) -> None:
        """As before; parameters of other modules too."""
        with torch.no_grad():
            for p, value in self._params:
                p.copy_(value)
            self._optimiser.state.clear()
            for p, (state, items) in self._state.items():
                state.clear()
                for key, (tensor, value) in items.items():
                    state[key] = tensor.copy_(value) if isinstance(tensor, Tensor) else value
                self._optimiser.state[p] = state
        for group, before in zip(self._optimiser.param_groups, self._groups, strict=True):
            group.clear()
            group.update(before)


class _Scaler:
    """A loss scaler's state."""

    def __init__(self, scaler: Any) -> None:
        self._scaler = scaler
        self._before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(scaler).items()}
        self._states = {k: dict(v) for k, v in scaler._per_optimizer_states.items()}  # noqa: SLF001  # no other way

    def restore(self) -> None:
        """As before."""
        vars(self._scaler).clear()
        vars(self._scaler).update(self._before)
        states = self._scaler._per_optimizer_states  # noqa: SLF001
        states.clear()
        states.update(self._states)


@contextmanager
def _restored(module: nn.Module) -> Iterator[dict[int, Any]]:
    """A module and the optimisers and scalers that are put into the dict, as before afterwards."""
    tensors = [*module.parameters(), *module.buffers()]
    values = [(x, x.detach().clone()) for x in tensors]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]
    modes = [(m, m.training) for m in module.modules()]
    met: dict[int, Any] = {}
    with preserved():
        try:
            yield met
        finally:
            for thing in met.values():
                thing.restore()
            with torch.no_grad():
                for x, value in values:
                    x.copy_(value)
                for p, gradient, value in gradients:
                    p.grad = gradient
                    if gradient is not None:
                        gradient.copy_(value)
            for m, training in modes:
                m.training = training
