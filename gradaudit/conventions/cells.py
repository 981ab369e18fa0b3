"""Recurrent layers: how each library stores them, through one common form.

Weights (G, D, H) and (G, H, H), biases (G, H), with the gates i, f, g, o (LSTM), r, z, n (GRU, reset after the product)
or one. Every row of the tables was compared with its library: PyTorch 2.13, Keras 3.15, Flax 0.12, Equinox 0.13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.conventions.places import Places, Recipes, full, two

__all__ = ["Cell", "gate_names", "recurrent"]

#: The order of the gates in the common form, and where another library stores them in another one.
GATES = {"lstm": "ifgo", "gru": "rzn", "rnn": "h"}
KERAS_ORDER = {"lstm": "ifgo", "gru": "zrn", "rnn": "h"}
_KERAS_CELL = {"lstm": "lstm_cell/*", "gru": "gru_cell/*", "rnn": "simple_rnn_cell/*"}
#: Axis 0 of PyTorch's and Equinox's tensors, the last of Keras's, holds the gates.
_OWN_ORDER = {
    "weight_ih": ("ifgo", "rzn", 0),
    "weight_hh": ("ifgo", "rzn", 0),
    "bias_ih": ("ifgo", "rzn", 0),
    "bias_hh": ("ifgo", "rzn", 0),
    "lstm_cell/kernel": ("ifco", "", -1),
    "lstm_cell/recurrent_kernel": ("ifco", "", -1),
    "lstm_cell/bias": ("ifco", "", -1),
    "gru_cell/kernel": ("", "zrh", -1),
    "gru_cell/recurrent_kernel": ("", "zrh", -1),
    "gru_cell/bias": ("", "zrh", -1),
}


def gate_names(parameter: str, n_blocks: int) -> tuple[str, int] | None:
    """The gates of a recurrent layer's parameter, in its order, and their axis; None where its name tells nothing."""
    for own, (four, three, axis) in _OWN_ORDER.items():
        gates = {4: four, 3: three}.get(n_blocks, "")
        if gates and own in parameter:
            return gates, axis
    return None


@dataclass(frozen=True, slots=True)
class Cell:
    """A recurrent layer in the common form; both biases are added, PyTorch's ``b_hn`` inside the GRU's reset."""

    weights: Array
    recurrent: Array
    bias: Array
    recurrent_bias: Array

    def folded(self, kind: str) -> Array:
        """What one bias can hold: all, but for a GRU's last recurrent one."""
        inside = self.recurrent_bias.copy()
        if kind == "gru":
            inside[2] = 0
        return self.bias + inside


Own: TypeAlias = Callable[[str], Array]


def _read_torch(kind: str, own: Own, *, bias: bool) -> Cell:
    weights, recurrent = (_blocks(own(f"weight_{side}"), kind).swapaxes(1, 2) for side in ("ih", "hh"))
    none = np.zeros(recurrent.shape[:2])
    biases = [_blocks(own(f"bias_{side}"), kind) if bias else none for side in ("ih", "hh")]
    return Cell(weights, recurrent, *biases)


def _write_torch(_: str, cell: Cell) -> dict[str, Array]:
    return {
        "weight_ih": _joined(cell.weights.swapaxes(1, 2)),
        "weight_hh": _joined(cell.recurrent.swapaxes(1, 2)),
        "bias_ih": _joined(cell.bias),
        "bias_hh": _joined(cell.recurrent_bias),
    }


def _read_equinox(kind: str, own: Own, *, bias: bool) -> Cell:
    weights, recurrent = (_blocks(own(f"weight_{side}"), kind).swapaxes(1, 2) for side in ("ih", "hh"))
    none = np.zeros(recurrent.shape[:2])
    inside = none.copy()
    if bias and kind == "gru":
        inside[2] = own("bias_n")
    return Cell(weights, recurrent, _blocks(own("bias"), kind) if bias else none, inside)


def _write_equinox(kind: str, cell: Cell) -> dict[str, Array]:
    stored = _write_torch(kind, cell)
    both = {"bias": _joined(cell.folded(kind)), "bias_n": cell.recurrent_bias[-1]}
    return {n: stored[n] for n in ("weight_ih", "weight_hh")} | {n: both[n] for n in _biases(kind, "equinox")}


def _read_keras(kind: str, own: Own, *, bias: bool) -> Cell:
    order = [KERAS_ORDER[kind].index(gate) for gate in GATES[kind]]
    weights, recurrent = (_blocks(own(n).T, kind).swapaxes(1, 2)[order] for n in ("kernel", "recurrent_kernel"))
    none = np.zeros(recurrent.shape[:2])
    if not bias:
        return Cell(weights, recurrent, none, none)
    rows = own("bias").reshape(-1, own("bias").shape[-1])
    found = [_blocks(row, kind)[order] for row in rows]
    return Cell(weights, recurrent, found[0], found[1] if len(found) == 2 else none)


def _write_keras(kind: str, cell: Cell) -> dict[str, Array]:
    order = [GATES[kind].index(gate) for gate in KERAS_ORDER[kind]]
    apart = np.stack([_joined(cell.bias[order]), _joined(cell.recurrent_bias[order])])
    return {
        "kernel": _joined(cell.weights[order].swapaxes(1, 2)).T,
        "recurrent_kernel": _joined(cell.recurrent[order].swapaxes(1, 2)).T,
        "bias": apart if kind == "gru" else _joined(cell.folded(kind)[order]),
    }


def _read_flax(kind: str, own: Own, *, bias: bool) -> Cell:
    gates = ["" if kind == "rnn" else gate for gate in GATES[kind]]
    weights, recurrent = (np.stack([own(f"{side}{gate}.kernel") for gate in gates]) for side in "ih")
    found = {side: np.zeros(recurrent.shape[:2]) for side in "ih"}
    for name in _biases(kind, "flax") if bias else ():
        found[name[0]][gates.index(name[1:].removesuffix(".bias"))] = own(name)
    return Cell(weights, recurrent, found["i"], found["h"])


def _write_flax(kind: str, cell: Cell) -> dict[str, Array]:
    gates = ["" if kind == "rnn" else gate for gate in GATES[kind]]
    stored = {f"i{gate}.kernel": cell.weights[k] for k, gate in enumerate(gates)}
    stored |= {f"h{gate}.kernel": cell.recurrent[k] for k, gate in enumerate(gates)}
    single = {"h" if kind == "lstm" else "i": cell.folded(kind), "h" if kind == "gru" else "": cell.recurrent_bias}
    for name in _biases(kind, "flax"):
        stored[name] = single[name[0]][gates.index(name[1:].removesuffix(".bias"))]
    return stored


def _read_nnx(kind: str, own: Own, *, bias: bool) -> Cell:
    weights, recurrent = (_blocks(own(f"dense_{side}.kernel").T, kind).swapaxes(1, 2) for side in "ih")
    none = np.zeros(recurrent.shape[:2])
    return Cell(weights, recurrent, _blocks(own(_biases(kind, "nnx")[0]), kind) if bias else none, none)


def _write_nnx(kind: str, cell: Cell) -> dict[str, Array]:
    return {
        "dense_i.kernel": _joined(cell.weights.swapaxes(1, 2)).T,
        "dense_h.kernel": _joined(cell.recurrent.swapaxes(1, 2)).T,
        _biases(kind, "nnx")[0]: _joined(cell.folded(kind)),
    }


def _biases(kind: str, library: str) -> tuple[str, ...]:
    """The names of a layer's biases."""
    return {
        "torch": ("bias_ih", "bias_hh"),
        "equinox": ("bias", "bias_n") if kind == "gru" else ("bias",),
        "keras": ("bias",),
        "flax": {
            "lstm": ("hi.bias", "hf.bias", "hg.bias", "ho.bias"),
            "gru": ("ir.bias", "iz.bias", "in.bias", "hn.bias"),
            "rnn": ("i.bias",),
        }[kind],
        "nnx": ("dense_h.bias",) if kind == "lstm" else ("dense_i.bias",),
    }[library]


def _weights(kind: str, library: str) -> tuple[str, ...]:
    """The names of its other parameters."""
    flax = tuple(f"{side}{'' if kind == 'rnn' else gate}.kernel" for side in "ih" for gate in GATES[kind])
    return {
        "torch": ("weight_ih", "weight_hh"),
        "equinox": ("weight_ih", "weight_hh"),
        "keras": ("kernel", "recurrent_kernel"),
        "flax": flax,
        "nnx": ("dense_i.kernel", "dense_h.kernel"),
    }[library]


def _blocks(a: Array, kind: str) -> Array:
    """Axis 0 as (gates, rest)."""
    gates = len(GATES[kind])
    return a.reshape(gates, a.shape[0] // gates, *a.shape[1:])


def _joined(a: Array) -> Array:
    """The first two axes as one."""
    return a.reshape(-1, *a.shape[2:])


_CELLS = {
    "torch": (_read_torch, _write_torch),
    "equinox": (_read_equinox, _write_equinox),
    "keras": (_read_keras, _write_keras),
    "flax": (_read_flax, _write_flax),
    "nnx": (_read_nnx, _write_nnx),
}


def recurrent(kind: str, places: Places, *, bias: bool) -> Recipes:
    """The recipes of a layer.

    Args:
        kind: lstm, gru or rnn.
        places: the first model's, then the port's.
        bias: whether it has one.

    Raises:
        OptionError: not two places.
    """
    known = {n: cell for n, cell in _CELLS.items() if (kind, n) != ("rnn", "equinox")}
    (library, place), (target, target_place) = two(places, known)
    read, write = known[library][0], known[target][1]
    patterns = {"torch": "*_l0", "keras": _KERAS_CELL[kind]}

    def cell(p: NamedArrays) -> Cell:
        return read(kind, lambda own: p[full(library, place, own, patterns.get(library, "*"))], bias=bias)

    names = _weights(kind, target) + (_biases(kind, target) if bias else ())
    pattern = patterns.get(target, "*")
    return {full(target, target_place, n, pattern): partial(_written, write, kind, cell, n) for n in names}


def _written(
    write: Callable[[str, Cell], dict[str, Array]],
    kind: str,
    cell: Callable[[NamedArrays], Cell],
    own: str,
    p: NamedArrays,
) -> Array:
    return write(kind, cell(p))[own]
