"""Recurrent layers: how each library stores them, as one table, and what follows from it.

What is common to all libraries are *blocks*, by role and gate: of the weights of the input (D, H), the recurrent ones
(H, H), the two biases, which are added, and the peepholes (H,); with the gates i, f, g, o (LSTM), r, z, n (GRU) or one,
h; and the learned initial states h and c (H,). The recurrent bias of the gate n of a GRU that resets after the product
is inside the reset, ``n = tanh(x W_n + b_n + r (h R_n + bn))``, and cannot be added to the other.

Every row was compared with its library: PyTorch 2.13, Keras 3.15, Flax 0.12, Equinox 0.13. Lasagne 0.2 cannot be
installed any more; its rows are as its source is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.conventions.places import Places, Recipes, full, two
from gradaudit.errors import ModelContractError, OptionError

__all__ = ["GATES", "OURS", "Blocks", "Role", "Tensor", "fitted", "gate_names", "homes", "recurrent", "tensors"]

Role = Literal["input", "recurrent", "bias", "recurrent_bias", "peephole", "initial"]
Blocks: TypeAlias = dict[tuple[Role, str], Array]

#: The gates of each cell of `gradaudit.RecurrentSpec`, in its order.
GATES = {"lstm": "ifgo", "gru": "rzn", "gru_before": "rzn", "elman": "h"}
#: The library that is `gradaudit.RecurrentSpec`.
OURS = "gradaudit"
_BIASES: tuple[Role, ...] = ("bias", "recurrent_bias")
_PARTS = {
    "input": "weight",
    "recurrent": "weight",
    "bias": "bias",
    "recurrent_bias": "bias",
    "peephole": "peephole",
    "initial": "initial",
}
_KERAS_CELL = {"lstm": "lstm_cell/*", "gru": "gru_cell/*", "gru_before": "gru_cell/*", "elman": "simple_rnn_cell/*"}
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
class Tensor:
    """A parameter of a library's layer: which blocks it consists of, and how they lie in it.

    Attributes:
        name: the parameter's.
        role: of its blocks; ``"biases"``: of the first row's, and of the second's.
        gates: of its blocks, in its order.
        lie: ``"columns"``: side by side on the last axis; ``"rows"``: so in the transpose; ``"apart"``: on an axis of
            their own, the first.
        sign: what the blocks are multiplied with.
    """

    name: str
    role: Role | Literal["biases"]
    gates: str
    lie: Literal["columns", "rows", "apart"] = "columns"
    sign: Literal[1, -1] = 1

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles of its blocks."""
        return _BIASES if self.role == "biases" else (self.role,)

    @property
    def part(self) -> str:
        """What of a layer it belongs to: bias, peephole and initial may be absent as a whole, weight not."""
        return _PARTS[self.roles[0]]

    def read(self, a: Array) -> Blocks:
        """The blocks.

        Raises:
            ModelContractError: it cannot consist of these.
        """
        n, rows = len(self.gates), len(self.roles)
        size = a.shape[-1 if self.lie == "columns" else 0] if a.ndim else 0
        wanted = (2 if self.part == "weight" else 1) + (rows == 2 or self.lie == "apart")
        fits = size == n if self.lie == "apart" else size % n == 0
        if a.ndim != wanted or not fits or (rows == 2 and len(a) != 2):
            msg = f"{self.name} has shape {a.shape}"
            axis = "the last axis" if self.lie == "columns" else "the first axis"
            hint = f"{wanted} axes, of which {axis} holds {n} equal parts" + (", the first 2" if rows == 2 else "")
            raise ModelContractError(msg, where="gradaudit.conventions", hint=hint)
        blocks: Blocks = {}
        for role, row in zip(self.roles, a if rows == 2 else a[None], strict=True):
            line = row.T if self.lie == "rows" else row
            parts = line if self.lie == "apart" else np.split(line, n, axis=-1)
            blocks |= {(role, gate): self.sign * block for gate, block in zip(self.gates, parts, strict=True)}
        return blocks

    def write(self, blocks: Blocks) -> Array:
        """The parameter that has these blocks."""
        join = np.stack if self.lie == "apart" else partial(np.concatenate, axis=-1)
        rows = [join([self.sign * blocks[role, gate] for gate in self.gates]) for role in self.roles]
        if self.role == "biases":
            return np.stack(rows)
        return rows[0].T if self.lie == "rows" else rows[0]


def _torch(cell: str) -> Iterator[Tensor]:
    yield Tensor("weight_ih", "input", GATES[cell], "rows")
    yield Tensor("weight_hh", "recurrent", GATES[cell], "rows")
    yield Tensor("bias_ih", "bias", GATES[cell])
    yield Tensor("bias_hh", "recurrent_bias", GATES[cell])


def _equinox(cell: str) -> Iterator[Tensor]:
    yield Tensor("weight_ih", "input", GATES[cell], "rows")
    yield Tensor("weight_hh", "recurrent", GATES[cell], "rows")
    yield Tensor("bias", "bias", GATES[cell])
    if cell == "gru":
        yield Tensor("bias_n", "recurrent_bias", "n")


def _keras(cell: str) -> Iterator[Tensor]:
    gates = GATES[cell].replace("rz", "zr")
    yield Tensor("kernel", "input", gates)
    yield Tensor("recurrent_kernel", "recurrent", gates)
    yield Tensor("bias", "biases" if cell == "gru" else "bias", gates)


def _flax(cell: str) -> Iterator[Tensor]:
    names = {gate: "" if cell == "elman" else gate for gate in GATES[cell]}
    yield from (Tensor(f"i{name}.kernel", "input", gate) for gate, name in names.items())
    yield from (Tensor(f"h{name}.kernel", "recurrent", gate) for gate, name in names.items())
    # what is added to the products of both needs one bias only
    yield from (Tensor(f"{'h' if cell == 'lstm' else 'i'}{name}.bias", "bias", gate) for gate, name in names.items())
    if cell == "gru":
        yield Tensor("hn.bias", "recurrent_bias", "n")


def _nnx(cell: str) -> Iterator[Tensor]:
    yield Tensor("dense_i.kernel", "input", GATES[cell])
    yield Tensor("dense_h.kernel", "recurrent", GATES[cell])
    yield Tensor("dense_h.bias" if cell == "lstm" else "dense_i.bias", "bias", GATES[cell])


def _nnx_apart(cell: str) -> Iterator[Tensor]:
    for tensor in _flax(cell):
        # "if" is a word of Python's
        yield Tensor("if_.kernel" if tensor.name == "if.kernel" else tensor.name, tensor.role, tensor.gates)


def _lasagne(cell: str) -> Iterator[Tensor]:
    if cell == "elman":
        yield Tensor("W_in_to_hid", "input", "h")
        yield Tensor("W_hid_to_hid", "recurrent", "h")
        yield Tensor("b", "bias", "h")
    words = {"i": "ingate", "f": "forgetgate", "g": "cell", "o": "outgate"} if cell == "lstm" else {}
    if cell == "gru":
        words = {"r": "resetgate", "z": "updategate", "n": "hidden_update"}
    for gate, word in words.items():
        # h' = (1 - u) h + u n, so that u = 1 - z
        sign: Literal[1, -1] = -1 if gate == "z" else 1
        yield Tensor(f"W_in_to_{word}", "input", gate, sign=sign)
        yield Tensor(f"W_hid_to_{word}", "recurrent", gate, sign=sign)
        yield Tensor(f"b_{word}", "bias", gate, sign=sign)
        if gate in "ifo":
            yield Tensor(f"W_cell_to_{word}", "peephole", gate)
    yield Tensor("hid_init", "initial", "h", "apart")
    if cell == "lstm":
        yield Tensor("cell_init", "initial", "c", "apart")


def _ours(cell: str) -> Iterator[Tensor]:
    yield Tensor("W", "input", GATES[cell])
    yield Tensor("R", "recurrent", GATES[cell])
    yield Tensor("b", "bias", GATES[cell])
    if cell == "gru":
        yield Tensor("bn", "recurrent_bias", "n")
    if cell == "lstm":
        yield Tensor("P", "peephole", "ifo", "apart")
        yield Tensor("c0", "initial", "c")
    yield Tensor("h0", "initial", "h")


_THREE = ("elman", "gru", "lstm")
#: Each library's parameters, and which cells it has.
_LIBRARIES: dict[str, tuple[Callable[[str], Iterator[Tensor]], tuple[str, ...]]] = {
    "torch": (_torch, _THREE),
    "keras": (_keras, tuple(GATES)),
    "flax": (_flax, _THREE),
    "nnx": (_nnx, _THREE),
    "nnx_apart": (_nnx_apart, ("lstm",)),
    "equinox": (_equinox, ("gru", "lstm")),
    "lasagne": (_lasagne, _THREE),
    OURS: (_ours, tuple(GATES)),
}


def tensors(cell: str) -> dict[str, tuple[Tensor, ...]]:
    """The parameters of such a layer in each library that has one."""
    return {name: tuple(stored(cell)) for name, (stored, cells) in _LIBRARIES.items() if cell in cells}


def homes(stored: Iterable[Tensor]) -> set[tuple[Role, str]]:
    """The blocks that these parameters hold."""
    return {(role, gate) for tensor in stored for role in tensor.roles for gate in tensor.gates}


def fitted(cell: str, blocks: Blocks, stored: Iterable[Tensor]) -> Blocks:
    """The same layer for these parameters: one bias for two where they have one, and 0 where it had none."""
    there, made = homes(stored), dict(blocks)
    for gate in GATES[cell]:
        zero = np.zeros_like(blocks["recurrent", gate][0])
        outside, inside = (blocks.get((role, gate), zero) for role in _BIASES)
        if ("recurrent_bias", gate) not in there and (cell, gate) != ("gru", "n"):
            outside, inside = outside + inside, zero
        made["bias", gate], made["recurrent_bias", gate] = outside, inside
    return made


def recurrent(
    cell: str, places: Places, *, bias: bool, peepholes: bool = False, learn_initial_state: bool = False
) -> Recipes:
    """The recipes of a layer.

    Args:
        cell: of `GATES`.
        places: the first model's, then the port's.
        bias: whether it has one; our own always has.
        peepholes: whether it has them.
        learn_initial_state: whether its initial state is a parameter.

    Raises:
        OptionError: not two places, or a library whose layer has no such parameters.
    """
    known = tensors(cell)
    (library, place), (target, target_place) = two(places, known)
    optional = {"bias": bias, "peephole": peepholes, "initial": learn_initial_state}
    parts = {"weight"} | {part for part, has in optional.items() if has}
    for name in (library, target):
        if missing := parts - {t.part for t in known[name]}:
            msg = f"the {cell} layers of {name} have no parameters for: {', '.join(sorted(missing))}"
            raise OptionError(msg, where="gradaudit.conventions", hint="peepholes=False, learn_initial_state=False")
    patterns = {"torch": "*_l0", "keras": _KERAS_CELL[cell]}
    there = [t for t in known[library] if t.part in parts]
    # without a bias, our own is zero
    wanted = [t for t in known[target] if t.part in parts | ({"bias"} if target == OURS else set())]

    def blocks(p: NamedArrays) -> Blocks:
        found: Blocks = {}
        for tensor in there:
            found |= tensor.read(p[full(library, place, tensor.name, patterns.get(library, "*"))])
        return fitted(cell, found, wanted)

    pattern = patterns.get(target, "*")
    return {full(target, target_place, t.name, pattern): partial(_written, t, blocks) for t in wanted}


def _written(tensor: Tensor, blocks: Callable[[NamedArrays], Blocks], p: NamedArrays) -> Array:
    return tensor.write(blocks(p))
