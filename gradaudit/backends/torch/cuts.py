"""Where a PyTorch function cuts its gradient: cuts are listed, removed, or held at their values.

A `torch.overrides.TorchFunctionMode` around the user's function sees every call of PyTorch's Python interface in this
thread, one frame away from the user's line. Nothing is patched.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import grad_mode
from torch.overrides import TorchFunctionMode

from gradaudit.backends.torch.inference import as_no_grad, is_inference
from gradaudit.backends.torch.sites import OURS, SKIPPED, at_frame, at_function
from gradaudit.backends.torch.state import eager
from gradaudit.backends.torch.storages import identity, storage
from gradaudit.sites import Cut

__all__ = ["Mode", "held", "listed", "removed"]

Function: TypeAlias = Callable[[dict[str, Tensor]], Any]
_Leaves: TypeAlias = Mapping[str, Tensor]
_Values: TypeAlias = Mapping[Cut, Sequence[Any]]

# each access to a property of a class makes another wrapper; they are equal, and so are their hashes
_DETACHING = {Tensor.detach: "detach", torch.detach: "detach", Tensor.data.__get__: ".data"}
_DETACHING |= {Tensor.detach_: "detach_", torch.detach_: "detach_"}
_REWRAPPING = dict.fromkeys((torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor), "rewrap")
_REWRAPPING[Tensor.new_tensor] = "rewrap"
_DIFFERENTIATING = {torch.autograd.grad: "autograd.grad"}
_GRAD_OPTIONS = ("create_graph", "only_inputs", "allow_unused", "is_grads_batched", "materialize_grads")
#: The value leaves PyTorch; no gradient can follow it.
_ROUND_TRIPS = {Tensor.item: "item", Tensor.tolist: "tolist", Tensor.__float__: "float"}
_ROUND_TRIPS |= {Tensor.numpy: "numpy", Tensor.__array__: "numpy"}
#: The value of one tensor becomes that of another.
_SETTING = {Tensor.data.__set__: ".data ="}
_KINDS = _DETACHING | _REWRAPPING | _DIFFERENTIATING | _ROUND_TRIPS | _SETTING
_NOT_REMOVABLE = {*_ROUND_TRIPS.values(), *_SETTING.values()}
#: They read the shape of a value, not the value.
_SHAPE_ONLY = {
    *("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like"),
    *("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros"),
}
_MARKING = {"requires_grad_", "share_memory_", "rename_"}  # in place, but not the value

#: What switches grad mode off, also as a decorator.
_SWITCHES = {"no_grad", "set_grad_enabled", "inference_mode"}


def listed(function: Function, leaves: dict[str, Tensor]) -> tuple[Cut, ...]:
    """The cuts through which values that depend on the leaves went in one run, in order of their first execution."""
    with _watched(mode := _Following(leaves)):
        function(dict(leaves))
    return tuple(replace(cut, executions=n) for cut, n in mode.executions.items())


def removed(function: Function, cuts: Collection[Cut]) -> Function:
    """The function, whose gradient flows through these cuts."""
    chosen = frozenset(cuts)

    def without(parameters: dict[str, Tensor]) -> Any:
        with _watched(_Removing(chosen)):
            return function(parameters)

    return without


def held(function: Function, leaves: dict[str, Tensor], cuts: Collection[Cut]) -> Function:
    """The function, in which the values that the cuts produce at these leaves stay what they are at all parameters."""
    with _watched(recording := _Following(leaves, cuts)):
        function(dict(leaves))

    def holding(parameters: dict[str, Tensor]) -> Any:
        # what depends on parameters is told by what requires a gradient, in a bare loss too
        own = {n: p if p.requires_grad else p.detach().requires_grad_() for n, p in parameters.items()}
        with _watched(_Following(own, cuts, recording.recorded)):
            return function(own)

    return holding


@contextlib.contextmanager
def _watched(mode: TorchFunctionMode) -> Iterator[None]:
    with as_no_grad(), eager(), mode:
        yield


@dataclass(slots=True, eq=False)
class _Region:
    """A stretch of a run with grad mode off."""

    cut: Cut
    live: bool = False


class Mode(TorchFunctionMode):  # type: ignore[misc]
    """Knows the line of a call, and in which regions without gradient it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.regions: tuple[_Region, ...] = ()
        self._before: dict[int, tuple[Any, tuple[_Region, ...]]] = {}
        self._sites: dict[tuple[str, CodeType | None, int, str], Cut] = {}

    def switch(self, *, enabled: bool, frame: FrameType) -> None:
        """Follow a change of grad mode."""
        manager, method, outside = None, "", frame
        while outside.f_code.co_filename == grad_mode.__file__ and outside.f_back is not None:
            if outside.f_code.co_name in {"__enter__", "__exit__", "__init__", "__call__"}:
                manager, method = outside.f_locals["self"], outside.f_code.co_name
            outside = outside.f_back
        if method in {"__exit__", "__call__"}:
            _, self.regions = self._before.pop(id(manager), (None, ()))
        elif method == "__enter__" and isinstance(manager, torch.set_grad_enabled) and id(manager) in self._before:
            pass  # its __init__ was here already
        else:
            self._before[id(manager)] = manager, self.regions  # kept alive, so that its id stays its own
            kind = "set_grad_enabled" if isinstance(manager, torch.set_grad_enabled) else "no_grad"
            kind = "inference_mode" if is_inference(outside.f_code) else kind
            self.regions = () if enabled else (*self.regions, _Region(self.site(kind, outside)))

    def site(self, kind: str, frame: FrameType | None) -> Cut:
        """The cut of this kind on the innermost line that is neither PyTorch's nor ours.

        Where a decorator switches the gradient off and no line of the user's calls the function, it is at the function.
        """
        decorated = None
        while frame is not None and frame.f_code.co_filename.startswith(SKIPPED):
            if decorated is None and frame.f_code.co_name in {"decorate_context", "generator_context"}:
                decorated = frame.f_locals["func"]
            elif decorated is not None and frame.f_code.co_filename.startswith(OURS):
                return at_function(kind, decorated) or at_frame(kind, None, "", removable=True)
            frame = frame.f_back
        function = getattr(decorated, "__qualname__", "") if decorated is not None and kind in _SWITCHES else ""
        # the last instruction may differ between two runs of a line: its position does not
        key = (kind, None, 0, function) if frame is None else (kind, frame.f_code, frame.f_lasti, function)
        if key not in self._sites:
            self._sites[key] = at_frame(kind, frame, function, removable=kind not in _NOT_REMOVABLE)
        return self._sites[key]


class _Removing(Mode):
    """Lets the gradient through some cuts."""

    def __init__(self, cuts: frozenset[Cut]) -> None:
        super().__init__()
        self._cuts = cuts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:  # noqa: SLF001  # by this name the mode sees it
            self.switch(enabled=args[0], frame=sys._getframe(1))  # noqa: SLF001
            if self.regions and not args[0] and self.regions[-1].cut in self._cuts:
                return None
        elif func in _KINDS:
            if func in _ROUND_TRIPS:  # it may record now, since another cut before it is removed
                return func(args[0].detach(), *args[1:], **kwargs)
            if self.site(_KINDS[func], sys._getframe(1)) in self._cuts:  # noqa: SLF001
                return _uncut(func, args, kwargs)
        return func(*args, **kwargs)


def _uncut(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a cut would have returned, gradient included."""
    if func in _DETACHING:
        x = args[0] if args else kwargs["input"]
        return x if _DETACHING[func] == "detach_" else x.view_as(x)
    if func in _DIFFERENTIATING:
        return func(*args[:4], **{**dict(zip(_GRAD_OPTIONS, args[4:], strict=False)), **kwargs, "create_graph": True})
    result = func(*args, **kwargs)
    position = 1 if func == Tensor.new_tensor else 0
    names = ("data", "obj", "s")
    data = args[position] if len(args) > position else next(kwargs[name] for name in names if name in kwargs)
    return result if result.requires_grad and not result.is_leaf else _wrapped(data, result).clone()


def _wrapped(data: Any, like: Tensor) -> Tensor:
    if isinstance(data, (list, tuple)) and data:
        return torch.stack([_wrapped(item, like) for item in data])
    return torch.as_tensor(data).to(like.device, like.dtype)


class _Following(Mode):
    """Follows what depends on parameters, counts cuts of it, and records what some of them produce, or replays it."""

    def __init__(self, leaves: _Leaves, cuts: Collection[Cut] = (), replayed: _Values | None = None) -> None:
        super().__init__()
        self.executions: dict[Cut, int] = defaultdict(int)
        self.recorded: dict[Cut, list[Any]] = {cut: [] for cut in cuts}
        self._replayed = replayed
        self._ordinals: dict[Cut, int] = defaultdict(int)
        # storages, kept alive so that their identities stay their own
        self._own = {identity(x): storage(x) for x in leaves.values()}
        self._derived: dict[int, Any] = {}
        self._foreign: dict[int, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:  # noqa: SLF001
            self.switch(enabled=args[0], frame=sys._getframe(1))  # noqa: SLF001
            return func(*args)
        # grad mode off outside all regions: inside a custom function's forward, which has a backward of its own
        apart = not self.regions and not torch.is_grad_enabled()
        name = getattr(func, "__name__", "")
        if apart or name in _SHAPE_ONLY:
            return func(*args, **kwargs)
        inputs = list(_tensors((args, kwargs)))
        changed = _changed(name, args, kwargs)
        if not any(self._depends(x) for x in inputs):
            result = func(*args, **kwargs)
            if any(x.requires_grad for x in inputs):
                self._foreign.update((identity(x), storage(x)) for x in _tensors((result, changed)))
            return result
        derived = any(self._is_derived(x) for x in inputs)
        # a view of these is held as they are
        bases = {identity(x) for x in inputs if not x.requires_grad and func not in _KINDS}
        result = func(*args, **kwargs)
        cuts = list(self._cuts(func, result, args, changed is not None, sys._getframe(1)))  # noqa: SLF001
        chosen = next((cut for cut in cuts if cut in self.recorded), None)
        if chosen is not None:
            result = self._kept(chosen, result, changed, bases)
        for x in _tensors((result, changed)):
            self._foreign.pop(identity(x), None)
            if (cuts or derived) and _is_cut(x):
                self._derived[identity(x)] = storage(x)
        return result

    def _cuts(self, func: Any, result: Any, args: Any, in_place: bool, frame: FrameType) -> Iterator[Cut]:  # noqa: FBT001
        """What cuts this call: itself, and the regions in which it lies."""
        results = [x for x in _tensors(result) if not any(x is y for y in _tensors(args))]
        lost = func in _ROUND_TRIPS or in_place or any(map(_is_cut, results))
        # a tensor given to as_tensor goes through with its gradient, if it has one
        converted = [x for x in args[:1] if func in {torch.as_tensor, torch.asarray} and isinstance(x, Tensor)]
        passed = any(not x.requires_grad for x in converted)
        if func in _KINDS and lost and not passed:
            cut = self.site(_KINDS[func], frame)
            self.executions[cut] += 1
            yield cut
        if lost:
            for region in self.regions:
                self.executions[region.cut] += not region.live
                region.live = True
                yield region.cut

    def _kept(self, cut: Cut, result: Any, changed: tuple[Tensor, Any] | None, bases: Collection[int]) -> Any:
        """Record what a call made, a result or a change in place, or put in its place what was recorded."""
        with torch.no_grad():
            if self._replayed is None:
                self.recorded[cut].append(_copied(result if changed is None else changed[0][changed[1]]))
                return result
            ordinal = self._ordinals[cut]
            self._ordinals[cut] += 1
            values = self._replayed.get(cut, ())
            if ordinal >= len(values):  # another branch than at the base point
                return result
            if changed is None:
                return _replaced(result, values[ordinal], bases)
            if cut.kind in {"detach_", ".data ="}:  # the graph behind may still need the old values
                changed[0].data = values[ordinal].clone()
            else:
                changed[0][changed[1]] = values[ordinal]
            return result

    def _depends(self, x: Tensor) -> bool:
        """On the parameters under audit; others, say of a module that the loss brings along, may record as well."""
        if not x.requires_grad:
            return self._is_derived(x)
        i = identity(x)
        return i in self._own or i in self._derived or not (x.is_leaf or i in self._foreign)

    def _is_derived(self, x: Tensor) -> bool:
        return bool(self._derived) and identity(x) in self._derived


def _changed(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Any] | None:
    """The tensor that a call changes in place, and at which index."""
    if name == "__setitem__":
        return args[0], args[1]
    if isinstance(kwargs.get("out"), Tensor):
        return kwargs["out"], ...
    in_place = name == "__set__" or (name.endswith("_") and not name.endswith("__") and name not in _MARKING)
    return (args[0], ...) if in_place and args and isinstance(args[0], Tensor) else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        while _functorch.is_batchedtensor(value):  # inside vmap: what is around hides whether it records
            value = _functorch.get_unwrapped(value)
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _is_cut(x: Tensor) -> bool:
    """Whether no gradient goes on from here, where one could: a plain value, or a leaf of its own."""
    return bool((x.is_floating_point() or x.is_complex()) and x.is_leaf)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [_copied(item) for item in value] if isinstance(value, (tuple, list)) else copy.deepcopy(value)


def _replaced(result: Any, value: Any, bases: Collection[int]) -> Any:
    """The recorded value in the form of the result."""
    if isinstance(result, Tensor):
        return result if identity(result) in bases else value.clone().requires_grad_(result.requires_grad)
    if isinstance(result, (tuple, list)):
        items = [_replaced(*pair, bases) for pair in zip(result, value, strict=False)]
        return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
    return copy.deepcopy(value)
