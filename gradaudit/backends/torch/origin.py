"""Where a PyTorch gradient stops being finite: the operation of the backward pass, at the line of its forward."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._C import _functorch
from torch.overrides import TorchFunctionMode

from gradaudit.backends.torch.functions import Handler, Rule, handling
from gradaudit.backends.torch.sites import SKIPPED
from gradaudit.sites import Origin

__all__ = ["found"]

Function: TypeAlias = Callable[[dict[str, Tensor]], Any]

#: What the user writes as an operator, or as a function of a namespace.
_NAMES = {"rdiv": "div", "truediv": "div", "rtruediv": "div", "rsub": "sub", "rpow": "pow", "rmatmul": "matmul"}
_NAMES |= {"radd": "add", "rmul": "mul", "grad": "autograd.grad"}
_NAMESPACES = ("linalg", "fft", "special")


def found(function: Function, leaves: dict[str, Tensor]) -> Origin | None:
    """The operation that makes a non-finite gradient of finite ones, in one run.

    None where all is finite, and where several finite gradients of one parameter have an infinite sum.
    """
    recording = _Recording()
    with handling(_Applied(recording.sites)), recording:
        loss = function(dict(leaves))
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return None
    nodes = list(recording.reached(loss.grad_fn))
    looking = _Looking(nodes)
    try:
        torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    finally:
        looking.remove()
    node = looking.first or looking.overflown
    return None if node is None else recording.origin(node)


class _Recording(TorchFunctionMode):  # type: ignore[misc]
    """Knows which call has made a node of the graph. The nodes are kept alive, so that each stays one object."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[Any, Origin] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        frame = sys._getframe(1)  # noqa: SLF001
        # what nobody has seen being made: by an extension, or a view of what has been changed in place
        self._add(_tensors((args, kwargs)), "", frame)
        result = func(*args, **kwargs)
        self._add((*_tensors(result), *_tensors(args[:1])), _name(func), frame)
        return result

    def _add(self, tensors: Iterable[Tensor], name: str, frame: FrameType) -> None:
        for x in tensors:
            if x.grad_fn is None or x.grad_fn in self.sites:
                continue
            site = _site(name, frame, x)
            for node in list(self.reached(x.grad_fn, self.sites)):
                self.sites[node] = site if name else replace(site, operation=_node_name(node))

    @staticmethod
    def reached(node: Any, known: Mapping[Any, Origin] | None = None) -> Iterator[Any]:
        """The nodes from here on, as far as they are not known."""
        left, seen = [node], set()
        while left:
            node = left.pop()
            if node is None or node in seen or (known is not None and node in known):
                continue
            seen.add(node)
            left += [following for following, _ in node.next_functions]
            yield node

    def origin(self, node: Any) -> Origin:
        """What is known of a node."""
        return self.sites.get(node) or Origin(operation=_node_name(node), path="unknown", line=0)


class _Applied(Handler):
    """Tells the recording of the nodes of hand-written rules, which a mode does not see."""

    def __init__(self, sites: dict[Any, Origin]) -> None:
        self._sites = sites

    def handles(self, rule: Rule) -> bool:  # noqa: ARG002
        """All of them."""
        return True

    def run(self, rule: Rule, ctx: Any, args: Sequence[Any]) -> tuple[Any, Any]:
        """The forward as it is."""
        return rule.run(ctx, args), None

    def settle(self, rule: Rule, ctx: Any, args: Sequence[Any], output: Any, note: Any) -> None:  # noqa: ARG002
        """The ctx is the node."""
        if rule.setup_context is not None:
            rule.setup_context(ctx, args, output)
        name = rule.site.name.rpartition("::")[2]
        self._sites[ctx] = _site(name, sys._getframe(1), output)  # noqa: SLF001

    def back(self, rule: Rule, ctx: Any, note: Any, grads: Sequence[Any]) -> Any:  # noqa: ARG002
        """The backward as it is."""
        return rule.differentiate(ctx, grads)


class _Looking:
    """Looks at what goes into each node in the backward pass, and at what comes out.

    Attributes:
        first: the first node that makes something non-finite.
        overflown: the first that gets something non-finite: several finite gradients had an infinite sum.
    """

    def __init__(self, nodes: Sequence[Any]) -> None:
        self.first: Any = None
        self.overflown: Any = None
        self._handles = [node.register_hook(self._hook(node)) for node in nodes]

    def remove(self) -> None:
        """The graph may be the user's own."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, node: Any) -> Callable[[Any, Any], None]:
        def look(outgoing: Any, incoming: Any) -> None:
            if self.first is None and not _finite(outgoing):
                if _finite(incoming):
                    self.first = node
                elif self.overflown is None:
                    self.overflown = node

        return look


def _finite(gradients: Any) -> bool:
    return all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


def _plain(x: Tensor) -> Tensor:
    """The values, inside a transform of `torch.func` as well."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.detach()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "").strip("_")
    name = _NAMES.get(name, name)
    space, _, rest = name.partition("_")
    return f"{space}.{rest}" if space in _NAMESPACES and rest else name


def _node_name(node: Any) -> str:
    """Of a node that no call has made under our eyes: ``SqrtBackward0`` is sqrt."""
    name = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    return re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", name).lower()


def _site(name: str, frame: FrameType | None, outputs: Any) -> Origin:
    outside = _first(frame, library=False) or _first(frame, library=True)
    forward = not _finite([_plain(x) for x in _tensors(outputs)])
    if outside is None:
        return Origin(operation=name, path="unknown", line=0, forward=forward)
    code = outside.f_code
    function = code.co_qualname.rpartition("<locals>.")[2]
    return Origin(operation=name, path=code.co_filename, line=outside.f_lineno, function=function, forward=forward)


def _first(frame: FrameType | None, *, library: bool) -> FrameType | None:
    """The innermost frame that is neither PyTorch's nor ours, and, if that is asked for, not a library's."""
    while frame is not None:
        path = frame.f_code.co_filename
        installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)
        if not path.startswith(SKIPPED) and (library or not installed):
            return frame
        frame = frame.f_back
    return None
