"""Back-propagation through time by hand (Werbos 1990): the reference that no framework has differentiated.

One network, one layer: arrays (H, N) by step. A cell's forward step is written again here, because it has to keep what
its backward step needs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.numpy.cells import OPS, Steps, activate
from gradaudit.recurrent import Activation, RecurrentSpec
from gradaudit.recurrent.cells import State, begin, end
from gradaudit.recurrent.spec import Layer

__all__ = ["LayerPass", "jacobian_product"]


def jacobian_product(h: Array, v: Array, activation: Activation) -> Array:
    """(d activation / d a) @ v from the output h. All five Jacobians are symmetric: forward and backward are one."""
    if activation == "tanh":
        return np.asarray(v * (1 - h * h))
    if activation == "relu":
        return np.asarray(v * (h > 0))
    if activation == "sigmoid":
        return np.asarray(v * (h * (1 - h)))
    if activation == "softmax":
        return np.asarray(h * (v - (h * v).sum(axis=-2, keepdims=True)))
    return v


class _Back(NamedTuple):
    """What one backward step gives.

    Attributes:
        source: d loss / d (x W + b), (G H, N).
        product: d loss / d (h R), (G H, N).
        before: d loss / d the state before, by component.
    """

    source: Array
    product: Array
    before: State


class _Cell:
    """One cell, forward and backward; ``kept`` is what the forward step keeps."""

    def __init__(self, spec: RecurrentSpec, layer: Layer, parameters: NamedArrays) -> None:
        self.spec = spec
        self.recurrent = np.ascontiguousarray(parameters["R" + layer.suffix])
        self.transposed = np.ascontiguousarray(self.recurrent.T)
        self.vectors = {n: parameters[n + layer.suffix] for n in ("bn", "P") if n + layer.suffix in parameters}

    def forward(self, state: State, source: Array) -> tuple[State, Any]:
        raise NotImplementedError

    def backward(self, kept: Any, adjoint: State) -> _Back:
        raise NotImplementedError

    def gradients(self, kept: list[Any], products: Array) -> dict[str, Array]:
        """Of R and the vectors, from what all steps kept and d loss / d (h R), (T, G H, N)."""
        raise NotImplementedError


class _Elman(_Cell):
    def forward(self, state: State, source: Array) -> tuple[State, Any]:
        (h,) = state
        after = activate(source + self.transposed @ h, self.spec.activation)
        return (after,), (h, after)

    def backward(self, kept: Any, adjoint: State) -> _Back:
        _, after = kept
        a = jacobian_product(after, adjoint[0], self.spec.activation)
        return _Back(a, a, (self.recurrent @ a,))

    def gradients(self, kept: list[Any], products: Array) -> dict[str, Array]:
        return {"R": _outer(np.stack([h for h, _ in kept]), products)}


class _Lstm(_Cell):
    def forward(self, state: State, source: Array) -> tuple[State, Any]:
        h, c = state
        i, f, g, o = np.split(source + self.transposed @ h, 4)
        peepholes = self.vectors.get("P")
        if peepholes is not None:
            i, f = i + peepholes[0][:, None] * c, f + peepholes[1][:, None] * c
        i, f, g = activate(i, "sigmoid"), activate(f, "sigmoid"), activate(g, "tanh")
        after = f * c + i * g
        if peepholes is not None:
            o = o + peepholes[2][:, None] * after
        o, top = activate(o, "sigmoid"), np.tanh(after)
        return (o * top, after), (h, c, i, f, g, o, after, top)

    def backward(self, kept: Any, adjoint: State) -> _Back:
        _, c, i, f, g, o, _, top = kept
        dh, dc = adjoint
        do = jacobian_product(o, dh * top, "sigmoid")
        dc = dc + jacobian_product(top, dh * o, "tanh")
        peepholes = self.vectors.get("P")
        if peepholes is not None:
            dc = dc + peepholes[2][:, None] * do
        di = jacobian_product(i, dc * g, "sigmoid")
        df = jacobian_product(f, dc * c, "sigmoid")
        dg = jacobian_product(g, dc * i, "tanh")
        a = np.concatenate([di, df, dg, do])
        before = dc * f
        if peepholes is not None:
            before = before + peepholes[0][:, None] * di + peepholes[1][:, None] * df
        return _Back(a, a, (self.recurrent @ a, before))

    def gradients(self, kept: list[Any], products: Array) -> dict[str, Array]:
        found = {"R": _outer(np.stack([k[0] for k in kept]), products)}
        if "P" in self.vectors:
            before, after = np.stack([k[1] for k in kept]), np.stack([k[6] for k in kept])
            di, df, _, do = np.split(products, 4, axis=1)
            found["P"] = np.stack([(d * c).sum(axis=(0, 2)) for d, c in ((di, before), (df, before), (do, after))])
        return found


class _Gru(_Cell):
    """Reset after the product."""

    def forward(self, state: State, source: Array) -> tuple[State, Any]:
        (h,) = state
        r_h, z_h, n_h = np.split(self.transposed @ h, 3)
        r, z, n = np.split(source, 3)
        r, z, m = activate(r + r_h, "sigmoid"), activate(z + z_h, "sigmoid"), n_h + self.vectors["bn"][:, None]
        n = np.tanh(n + r * m)
        return ((1 - z) * n + z * h,), (h, r, z, n, m)

    def backward(self, kept: Any, adjoint: State) -> _Back:
        (h, r, z, n, m), (dh,) = kept, adjoint
        dn = jacobian_product(n, dh * (1 - z), "tanh")
        dz = jacobian_product(z, dh * (h - n), "sigmoid")
        dr = jacobian_product(r, dn * m, "sigmoid")
        product = np.concatenate([dr, dz, dn * r])
        return _Back(np.concatenate([dr, dz, dn]), product, (dh * z + self.recurrent @ product,))

    def gradients(self, kept: list[Any], products: Array) -> dict[str, Array]:
        bn = np.split(products, 3, axis=1)[2].sum(axis=(0, 2))
        return {"R": _outer(np.stack([k[0] for k in kept]), products), "bn": bn}


class _GruBefore(_Cell):
    """Reset before the product."""

    def __init__(self, spec: RecurrentSpec, layer: Layer, parameters: NamedArrays) -> None:
        super().__init__(spec, layer, parameters)
        self.wide = 2 * spec.width

    def forward(self, state: State, source: Array) -> tuple[State, Any]:
        (h,) = state
        r, z = np.split(source[: self.wide] + self.transposed[: self.wide] @ h, 2)
        r, z = activate(r, "sigmoid"), activate(z, "sigmoid")
        n = np.tanh(source[self.wide :] + self.transposed[self.wide :] @ (r * h))
        return ((1 - z) * n + z * h,), (h, r, z, n)

    def backward(self, kept: Any, adjoint: State) -> _Back:
        (h, r, z, n), (dh,) = kept, adjoint
        dn = jacobian_product(n, dh * (1 - z), "tanh")
        into = self.recurrent[:, self.wide :] @ dn
        dz = jacobian_product(z, dh * (h - n), "sigmoid")
        dr = jacobian_product(r, into * h, "sigmoid")
        a = np.concatenate([dr, dz, dn])
        return _Back(a, a, (dh * z + into * r + self.recurrent[:, : self.wide] @ a[: self.wide],))

    def gradients(self, kept: list[Any], products: Array) -> dict[str, Array]:
        h, r = np.stack([k[0] for k in kept]), np.stack([k[1] for k in kept])
        parts = _outer(h, products[:, : self.wide]), _outer(r * h, products[:, self.wide :])
        return {"R": np.concatenate(parts, axis=1)}


_CELLS: dict[str, type[_Cell]] = {"elman": _Elman, "lstm": _Lstm, "gru": _Gru, "gru_before": _GruBefore}


def _outer(left: Array, right: Array) -> Array:
    """The sum over steps and sequences of left_i right_j, of (T, I, N) and (T, J, N), as one BLAS call."""
    left, right = (np.ascontiguousarray(a.transpose(1, 0, 2)).reshape(a.shape[1], -1) for a in (left, right))
    return np.asarray(left @ right.T)


class LayerPass:
    """A layer's forward pass, which keeps what the backward pass needs.

    Args:
        spec: the network's.
        layer: which layer, the ``index``-th.
        index: its place.
        parameters: of one network.
        steps: what is given at each step.
        below: what the layer reads, (T, D, N).
        state: its state before the first step, by component (H, N).
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        layer: Layer,
        index: int,
        parameters: NamedArrays,
        steps: Steps,
        below: Array,
        state: State,
    ) -> None:
        self._spec, self._layer, self._steps, self._below = spec, layer, steps, below
        self._cell = _CELLS[spec.cell](spec, layer, parameters)
        self._weight = parameters["W" + layer.suffix]
        sources = self._weight.T @ below + parameters["b" + layer.suffix][:, None]
        self._kept: list[Any] = []
        outputs = []
        for t, source in enumerate(sources):
            given = steps.at(t)
            before = begin(spec, OPS, index, state, given)
            after, kept = self._cell.forward(before, source)
            state = end(OPS, before, after, given)
            outputs.append(state[0])
            self._kept.append(kept)
        #: The states h, (T, H, N).
        self.outputs = np.stack(outputs)

    def back(self, cotangents: Array, carried: State) -> tuple[dict[str, Array], Array, State]:
        """From d loss / d h (T, H, N), and what later losses add to d loss / d its last state, by component (H, N).

        Returns:
            The gradients by name, d loss / d what it reads, d loss / d its first state.
        """
        sources, products = [], []
        for t in reversed(range(len(cotangents))):
            adjoint = (carried[0] + cotangents[t], *carried[1:])
            mask = None if self._steps.mask is None else self._steps.mask[t]
            live = adjoint if mask is None else tuple(np.where(mask, a, 0) for a in adjoint)
            back = self._cell.backward(self._kept[t], live)
            carried = back.before
            if mask is not None:
                carried = tuple(np.where(mask, b, a) for a, b in zip(adjoint, carried, strict=True))
            if self._steps.weights is not None:
                weight = self._steps.weights[t]
                # where, not a product: 0 * inf is NaN
                carried = tuple(np.where(weight == 0, 0, weight * c) for c in carried)
            sources.append(back.source)
            products.append(back.product)
        source = np.stack(sources[::-1])
        gradients = self._cell.gradients(self._kept, np.stack(products[::-1]))
        # (G H, T N): the long axis is contiguous, so the sum over it is pairwise
        gradients["b"] = np.ascontiguousarray(source.transpose(1, 0, 2)).reshape(source.shape[1], -1).sum(axis=1)
        gradients["W"] = _outer(self._below, source)
        named = {name + self._layer.suffix: g for name, g in gradients.items()}
        return named, np.asarray(self._weight @ source), carried
