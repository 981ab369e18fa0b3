"""What a module holds: its attributes and those of the modules inside, exchanged for a while and put back."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

__all__ = ["Contents", "Values"]

#: Containers whose elements can be put back in place. Of their subclasses it is not known what else they keep.
_MAPPINGS = (dict, OrderedDict, defaultdict)
_SEQUENCES = (list, deque)

_Exchange: TypeAlias = Callable[[Tensor], Tensor]


@final
class Contents:
    """The attributes of a module, of the modules inside, and the elements of the lists, dicts, deques and tuples there.

    Args:
        module: what it holds now is what is put back.

    Attributes:
        tensors: all of them, by identity: parameters, buffers and what was never registered.
    """

    def __init__(self, module: nn.Module) -> None:
        self.tensors: dict[int, Tensor] = {id(x): x for x in (*module.parameters(), *module.buffers())}
        self._modes = [(m, m.training) for m in module.modules()]  # of TorchScript's it is no attribute
        self._before: dict[int, tuple[Any, Any]] = {}
        self._registered: set[int] = set()
        self._look(module)

    def exchange(self, instead: _Exchange) -> None:
        """Put another tensor in the place of each; parameters and buffers stay, where they are registered."""
        for key, (container, before) in self._before.items():
            if key in self._registered:
                continue
            for place, x in _places(before):
                other = _exchanged(x, instead)
                if other is not x:
                    container[place] = other

    def restore(self) -> None:
        """Put back what was there, in place; the numbers in the tensors are not looked at, see `Values`."""
        for container, before in self._before.values():
            if not _same(container, before):
                container.clear()
                (container.update if isinstance(container, dict) else container.extend)(before)
        for module, training in self._modes:
            if module.training != training:
                module.training = training

    def _look(self, x: Any) -> None:
        if isinstance(x, Tensor):
            self.tensors.setdefault(id(x), x)
        elif isinstance(x, nn.Module):
            attributes = vars(x)
            self._registered |= {id(attributes.get(name)) for name in ("_parameters", "_buffers")}
            self._look_inside(attributes)
        elif type(x) in _MAPPINGS or type(x) in _SEQUENCES:
            self._look_inside(x)
        elif _is_tuple(x):
            for item in x:
                self._look(item)

    def _look_inside(self, container: Any) -> None:
        if id(container) in self._before:
            return
        before = dict(container) if isinstance(container, dict) else list(container)
        self._before[id(container)] = container, before
        for _, item in _places(before):
            self._look(item)


@final
class Values:
    """What a module holds, and the numbers in it, to be put back into the same tensors.

    Args:
        module: as it is now.
    """

    def __init__(self, module: nn.Module) -> None:
        self._contents = Contents(module)
        # what is sparse, or of no numbers, nobody writes into
        dense = [x for x in self._contents.tensors.values() if x.layout is torch.strided and not x.is_meta]
        self._values = [(x, x.detach().clone(), x.requires_grad) for x in dense]

    def restore(self) -> None:
        """As before; a tensor that nobody has written into is left alone: a graph may have saved it."""
        self._contents.restore()
        with torch.no_grad():
            for x, value, trained in self._values:
                if x.dtype != value.dtype or x.shape != value.shape:
                    x.data = value
                elif not torch.equal(x, value):
                    x.copy_(value)
                if x.requires_grad != trained:
                    x.requires_grad_(trained)


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    return iter(container.items() if isinstance(container, dict) else enumerate(container))


def _is_tuple(x: Any) -> bool:
    return type(x) is tuple or (isinstance(x, tuple) and hasattr(x, "_fields"))


def _exchanged(x: Any, instead: _Exchange) -> Any:
    """Another tensor, or a tuple in which there are others; anything else, itself."""
    if isinstance(x, Tensor):
        return instead(x)
    if not _is_tuple(x):
        return x
    items = [_exchanged(item, instead) for item in x]
    if all(a is b for a, b in zip(items, x, strict=True)):
        return x
    return type(x)(*items) if hasattr(x, "_fields") else tuple(items)


def _same(container: Any, before: Any) -> bool:
    """Whether it holds the same objects in the same places and order."""
    if len(container) != len(before):
        return False
    pairs = zip(_places(container), _places(before), strict=True)
    return all(place == other and x is y for (place, x), (other, y) in pairs)
