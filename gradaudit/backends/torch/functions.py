"""Hand-written PyTorch derivatives, and who stands between them and autograd.

While a `Handler` is entered, the methods of every `torch.autograd.Function` that is not PyTorch's own are wrapped, on
the class, since autograd looks them up there at every call: an alias of ``apply`` or a compiled function is caught as
well. The wrappers ask for the handlers of their own thread; without one, the original runs.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch.autograd import Function

from gradaudit.backends.torch.state import Patches, eager
from gradaudit.sites import CustomRule, definition

__all__ = ["Handler", "Rule", "handling"]

Arguments: TypeAlias = Sequence[Any]

_LIBRARY = "torch._library.autograd"
_NOTE = "_gradaudit"
_LOCAL = threading.local()


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One class as it was written.

    Attributes:
        cls: the class.
        site: where its backward is.
        forward: as written, with or without ctx.
        backward: as written; named ``vjp`` in some.
        setup_context: None where forward has the ctx.
        implementation: of an operator of `torch.library`, whose forward is beyond autograd.
    """

    cls: Any
    site: CustomRule
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    setup_context: Callable[..., Any] | None
    implementation: Callable[..., Any] | None = None

    def primal(self, ctx: Any, args: Arguments) -> Any:
        """Run the forward, for its own sake."""
        if self.implementation is not None:
            return self.implementation(*args[:-1], **args[-1].keyword_only_args)
        return self.run(ctx, args)

    def run(self, ctx: Any, args: Arguments) -> Any:
        """Run the forward as autograd does."""
        return self.forward(*args) if self.setup_context else self.forward(ctx, *args)

    def differentiate(self, ctx: Any, grads: Sequence[Any]) -> Any:
        """Run the backward."""
        return self.backward(ctx, list(grads)) if _boxed(self.cls) else self.backward(ctx, *grads)


def _boxed(cls: Any) -> bool:
    """Its backward takes its gradients as one list."""
    return bool(getattr(cls, "boxed_grads_call", False))


class Handler:
    """Stands between autograd and hand-written rules, in the thread that entered it.

    Attributes:
        precedes: asked before the others, whichever was entered first.
    """

    precedes = False

    def handles(self, rule: Rule) -> bool:
        """Whether calls of this one are its business."""
        raise NotImplementedError

    def run(self, rule: Rule, ctx: Any, args: Arguments) -> tuple[Any, Any]:
        """Run a forward, ctx None where it takes none: its outputs, and a note for what comes later."""
        raise NotImplementedError

    def settle(self, rule: Rule, ctx: Any, args: Arguments, output: Any, note: Any) -> None:
        """Make ctx ready for the backward pass."""
        raise NotImplementedError

    def back(self, rule: Rule, ctx: Any, note: Any, grads: Sequence[Any]) -> Any:
        """Run a backward; what it returns goes to the engine."""
        raise NotImplementedError


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Let this one handle rules in this thread; where several are entered, the first that wants to."""
    stack = _stack()
    stack.insert(0 if handler.precedes else len(stack), handler)
    try:
        with _INSTALLED.held(), eager():
            yield
    finally:
        stack.remove(handler)
        if not stack:
            _LOCAL.pending.clear()


def _stack() -> list[Handler]:
    if not hasattr(_LOCAL, "handlers"):
        _LOCAL.handlers, _LOCAL.pending = [], []
    handlers: list[Handler] = _LOCAL.handlers
    return handlers


def _handler(rule: Rule) -> Handler | None:
    return next((handler for handler in _stack() if handler.handles(rule)), None)


def _install(patches: Patches) -> None:
    # all are read before any is wrapped: they inherit from one another
    for rule in [rule for cls in _subclasses(Function) if (rule := _rule(cls)) is not None]:
        _wrap(patches, rule)
    patches.put(Function, "__init_subclass__", classmethod(_new))


def _wrap(patches: Patches, rule: Rule) -> None:
    for name, wrapper in _wrappers(rule).items():
        patches.put(rule.cls, name, staticmethod(wrapper))


def _new(cls: Any, /, **options: Any) -> None:
    """A class is written meanwhile."""
    super(Function, cls).__init_subclass__(**options)
    rule = _rule(cls)
    if rule is not None:
        _wrap(_INSTALLED, rule)


_INSTALLED = Patches(_install)


def _subclasses(cls: Any) -> Iterator[Any]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def _rule(cls: Any) -> Rule | None:
    """What is written in a class; None: PyTorch's own, or without a backward."""
    library = cls.__module__ == _LIBRARY
    if str(cls.__module__).partition(".")[0] == "torch" and not library:
        return None
    forward, backward, setup = map(_written, (cls.forward, _backward(cls), cls.setup_context))
    implementation, name, rule = None, cls.__qualname__.rpartition("<locals>.")[2], backward
    if library:
        cells = _cells(forward)
        cells |= _cells(cells.get("orig_forward"))
        rule = getattr(cells.get("info"), "_backward_fn", None)
        name = str(getattr(getattr(cells.get("op"), "_schema", None), "name", name))
        implementation = None if "orig_forward" in cells else getattr(cells.get("info"), "_init_fn", None)
    if rule is None or rule is Function.backward:
        return None
    path, line = _place(rule)
    installed = _is_installed(path)
    kind = "register_autograd" if library else "autograd.Function"
    site = CustomRule(kind=kind, name=name, path=path, line=line, library=installed)
    return Rule(cls, site, forward, backward, None if setup is Function.setup_context else setup, implementation)


@functools.cache
def _is_installed(path: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)


def _backward(cls: Any) -> Any:
    return cls.backward if cls.vjp is Function.vjp else cls.vjp


def _written(method: Any) -> Any:
    """The method behind our wrapper, which a class written meanwhile may inherit."""
    return getattr(method, _NOTE, method)


def _cells(function: Any) -> dict[str, Any]:
    if not isinstance(function, FunctionType):
        return {}
    return {n: c.cell_contents for n, c in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)}


def _place(function: Any) -> tuple[str, int]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return ("unknown", 0) if code is None else (code.co_filename, definition(code.co_filename, code.co_firstlineno))


def _wrappers(rule: Rule) -> Mapping[str, Callable[..., Any]]:
    def forward(ctx: Any, *args: Any) -> Any:
        # called by a class that inherits it, or by hand: not an application of this rule
        handler = _handler(rule) if type(ctx) is rule.cls._backward_cls else None  # noqa: SLF001
        if handler is None:
            return rule.forward(ctx, *args)
        output, note = handler.run(rule, ctx, args)
        handler.settle(rule, ctx, args, output, note)
        setattr(ctx, _NOTE, (handler, rule, note))
        return output

    def forward_alone(*args: Any) -> Any:
        handler = None if torch.is_grad_enabled() else _handler(rule)  # autograd has it off, a call by hand has not
        if handler is None:
            return rule.forward(*args)
        output, note = handler.run(rule, None, args)
        _LOCAL.pending.append((handler, rule, args, note))
        return output

    def setup_context(ctx: Any, inputs: Any, output: Any) -> Any:
        while _stack() and _LOCAL.pending:
            handler, of, args, note = _LOCAL.pending.pop()
            # under vmap they are wrapped anew
            if of is rule and (torch._C._are_functorch_transforms_active() or all(map(_same, args, inputs))):  # noqa: SLF001
                handler.settle(rule, ctx, inputs, output, note)
                setattr(ctx, _NOTE, (handler, rule, note))
                return None
        assert rule.setup_context is not None  # only then is this wrapper there
        return rule.setup_context(ctx, inputs, output)

    def backward(ctx: Any, *grads: Any) -> Any:
        handler, of, note = getattr(ctx, _NOTE, (None, None, None))
        if handler is None or of is not rule:
            return rule.backward(ctx, *grads)
        return handler.back(rule, ctx, note, grads[0] if _boxed(rule.cls) else grads)

    name = "backward" if rule.cls.vjp is Function.vjp else "vjp"
    made: dict[str, tuple[Any, Any]] = {"forward": (forward, rule.forward), name: (backward, rule.backward)}
    if rule.setup_context is not None:
        made |= {"forward": (forward_alone, rule.forward), "setup_context": (setup_context, rule.setup_context)}
    for wrapper, original in made.values():
        functools.update_wrapper(wrapper, original)
        setattr(wrapper, _NOTE, original)
    return {name: wrapper for name, (wrapper, _) in made.items()}


def _same(one: Any, other: Any) -> bool:
    return one is other
