"""Pairs that nobody asked for: (N,) with (N, 1) is (N, N), of which a loss then takes the mean.

A framework tells of each operation in one run of the loss; what is followed is the same in all. A broadcast is
deliberate where the user has made the axis: by an index None, a reshape, a transposition, a reduction that keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, final

from gradaudit.sites import Broadcast

__all__ = ["Following", "Kind", "Value", "may_pair"]

#: What an operation does to its inputs. ``pairing``: elementwise, one that losses are made of; ``shaping``: the same
#: numbers in another shape; ``promoting``: that, by the framework itself, of (N,) to (1, N); ``taking``: some of them;
#: ``adding``: their sum or mean over axes; ``keeping``: a reduction that keeps its axis.
Kind: TypeAlias = Literal["pairing", "elementwise", "shaping", "promoting", "taking", "adding", "keeping", "other"]


class Value(NamedTuple):
    """An array of a run: a number of its own, and its shape."""

    key: int
    shape: tuple[int, ...]


def may_pair(kind: Kind, inputs: Sequence[Value]) -> bool:
    """Whether an operation takes (N,) or (1, N) with (N, 1), N > 1: then its line is worth looking for."""
    n = max((max(x.shape, default=0) for x in inputs), default=0)
    shapes = {x.shape for x in inputs}
    return kind == "pairing" and n > 1 and shapes in ({(n,), (n, 1)}, {(1, n), (n, 1)})


@final
class Following:
    """Follows the values of one run; those that it has never seen come from outside, as data.

    Args:
        parameters: the keys of what is differentiated.
    """

    def __init__(self, parameters: Sequence[int]) -> None:
        self.found: list[Broadcast] = []
        self._parameters = set(parameters)  # and what depends on nothing else
        self._touched = set(parameters)  # what depends on them
        self._made: set[int] = set()  # an axis of size 1 is there because the user wanted it
        self._same: dict[int, int] = {}  # by key, the key of the value with the same numbers in another shape
        self._pairs: dict[int, Broadcast] = {}
        self._sums: dict[int, Broadcast] = {}  # of pairs, over one axis

    def note(self, kind: Kind, inputs: Sequence[Value], output: Value, site: Broadcast | None) -> None:
        """One operation.

        Args:
            kind: of it.
            inputs: arrays only.
            output: one of its results.
            site: where it is written, if it `may_pair`; None: not in the user's code.
        """
        if inputs and all(x.key in self._parameters for x in inputs):
            self._parameters.add(output.key)
        if any(x.key in self._touched for x in inputs):
            self._touched.add(output.key)
        if kind in ("shaping", "promoting"):
            self._same[output.key] = self._same.get(inputs[0].key, inputs[0].key)
        if self._makes(kind, inputs, output):
            self._made.add(output.key)
        if kind in ("pairing", "elementwise", "shaping"):
            self._pass_on(inputs, output)
        if site is not None and may_pair(kind, inputs) and self._is_accident(inputs):
            self._pairs[output.key] = site
        if kind == "adding":
            self._add_up(inputs[0], output)

    def _makes(self, kind: Kind, inputs: Sequence[Value], output: Value) -> bool:
        """Whether the result has an axis of size 1 that the user has made, here or before."""
        if 1 not in output.shape:
            return False
        if kind == "keeping" or (kind == "shaping" and inputs[0].shape != output.shape):
            return True
        if kind == "taking":
            return inputs[0].key in self._made
        # met by a value that has the axis of itself, as the outputs of a layer do, it is no longer only the user's
        alike = [x for x in inputs if x.shape == output.shape] if kind not in ("promoting", "other") else []
        return bool(alike) and all(x.key in self._made for x in alike)

    def _pass_on(self, inputs: Sequence[Value], output: Value) -> None:
        for x in inputs:
            if x.key in self._pairs and x.shape == output.shape:
                self._pairs[output.key] = self._pairs[x.key]
            # a sum over one axis is still one over pairs, unless it meets other values of that shape
            if x.key in self._sums and all(y is x or y.shape == () for y in inputs):
                self._sums[output.key] = self._sums[x.key]

    def _is_accident(self, inputs: Sequence[Value]) -> bool:
        a, b = inputs
        chosen = any(x.key in self._made or x.key in self._parameters for x in inputs)
        told = any(x.key in self._touched for x in inputs)
        return told and not chosen and self._same.get(a.key, a.key) != self._same.get(b.key, b.key)

    def _add_up(self, pairs: Value, output: Value) -> None:
        site = self._pairs.get(pairs.key) or self._sums.get(pairs.key)
        if site is None:
            return
        if output.shape != ():
            self._sums[output.key] = site
        elif site not in self.found:
            self.found.append(site)
