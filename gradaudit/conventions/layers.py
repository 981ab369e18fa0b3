"""The weights of a library's recurrent layer as those of a `gradaudit.RecurrentSpec`, and back; gradients too.

Names and NumPy arrays only. A layer's parameters go by their own names, behind which stands ``_l0``, ``_l1``, ... for
the layers of a stack and ``_reverse`` for the other direction, as in PyTorch, whatever the library:

- ``torch``: `nn.RNN`, `nn.GRU`, `nn.LSTM`; ``{n: p.detach().numpy() for n, p in layer.named_parameters()}``.
- ``keras``: `SimpleRNN`, `GRU`, `LSTM`; ``{w.name: w.numpy() for w in layer.weights}``.
- ``flax``: `linen.SimpleCell`, `GRUCell`, `LSTMCell`, `OptimizedLSTMCell`;
  ``flax.traverse_util.flatten_dict(params, sep=".")``, and back with ``unflatten_dict``. Its LSTM's state is (c, h).
- ``nnx``: `nnx.SimpleCell`, `GRUCell`, `OptimizedLSTMCell`, and ``nnx_apart``: `nnx.LSTMCell`; the same of
  ``nnx.to_pure_dict(nnx.state(cell, nnx.Param))``.
- ``equinox``: `eqx.nn.GRUCell`, `LSTMCell`; ``{n: getattr(cell, n) for n in ("weight_ih", "weight_hh", "bias")}``,
  and ``"bias_n"`` of a GRU.
- ``lasagne``: `RecurrentLayer`, `GRULayer`, `LSTMLayer`; ``{n: getattr(layer, n).get_value() for n in (...)}``, with
  ``hid_init`` and ``cell_init`` where they are learned.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import numpy as np

from gradaudit.arrays import Array, NamedArrays
from gradaudit.conventions.cells import GATES, OURS, Blocks, Role, Tensor, fitted, homes, tensors
from gradaudit.errors import ModelContractError, OptionError

__all__ = ["from_library", "gradients_to_library", "to_library"]

_NAME = re.compile(r"(.+?)(?:_l(\d+))?(_reverse)?")
#: What a library's layer computes unless it is told otherwise.
_ACTIVATIONS = {"lasagne": "relu"}
_READOUT = ("V", "c")
_REMEDIES: dict[Role, str] = {
    "bias": "bias=True, or set it to 0",
    "recurrent_bias": "set it to 0; with bias=True, torch, keras, flax and equinox have a place for it",
    "peephole": "set it to 0; lasagne has a place for it",
    "initial": "leave it out and begin the layer with it as its state; lasagne has a place for it",
}


def from_library(library: str, cell: str, arrays: NamedArrays) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a `gradaudit.RecurrentSpec` takes, and the weights of its recurrent layers.

    ``RecurrentSpec(n_classes=C, **options)`` with ``weights | {"V": ..., "c": ...}``, the readout's, or without one,
    where the states are the logits, ``options | {"n_hidden": None}`` and C = H.

    Args:
        library: torch, keras, flax, nnx, nnx_apart, equinox or lasagne.
        cell: elman, gru, gru_before (Keras's GRU with ``reset_after=False``) or lstm.
        arrays: the layer's parameters, by the names above.

    Returns:
        ``cell``, ``n_features``, ``n_hidden``, ``n_layers``, ``bidirectional``, ``peepholes``, ``learn_initial_state``,
        and of an Elman layer the ``activation`` that the library's has by default; and the weights, W (D, G H) and so
        on, in the dtype of the arrays, the two biases of a library added up, zero where the layer has none.

    Raises:
        OptionError: an unknown library or cell, one that the library does not have, or a stack in both directions.
        ModelContractError: names that the library's layer does not have or does not lack, shapes that do not fit.
    """
    stored = _stored(library, cell)
    ours = tensors(cell)[OURS]
    layers = {at: _blocks(stored, cell, own) for at, own in _by_layer(library, arrays).items()}
    weights: dict[str, Array] = {}
    for at, blocks in layers.items():
        weights |= _written(ours, fitted(cell, blocks, ours), _suffix(OURS, at, layers))
    lowest = layers[0, False]
    n_features, n_hidden = lowest["input", GATES[cell][0]].shape
    options: dict[str, Any] = {"cell": cell, "n_features": n_features, "n_hidden": n_hidden}
    if cell == "elman":
        options["activation"] = _ACTIVATIONS.get(library, "tanh")
    options |= {"n_layers": 1 + max(level for level, _ in layers), "bidirectional": (0, True) in layers}
    options |= {"peepholes": ("peephole", "i") in lowest, "learn_initial_state": ("initial", "h") in lowest}
    return options, weights


def to_library(library: str, cell: str, weights: NamedArrays, *, bias: bool = True) -> dict[str, Array]:
    """The parameters of a library's layer that computes what ours does, by the names above.

    Args:
        library: torch, keras, flax, nnx, nnx_apart, equinox or lasagne.
        cell: elman, gru, gru_before (Keras's GRU with ``reset_after=False``) or lstm.
        weights: of a `gradaudit.RecurrentSpec`; a readout's V and c are left out.
        bias: whether the library's layer has one.

    Returns:
        The parameters, in the dtype of the weights. Where a library has two biases for our one, the second is 0.

    Raises:
        OptionError: an unknown library or cell, one that the library does not have, or a weight that is not 0 and for
            which it has no place.
        ModelContractError: names that the cell does not have or lacks, shapes that do not fit.
    """
    kept = _kept(library, cell, bias=bias)
    ours = tensors(cell)[OURS]
    layers = _by_layer(OURS, {n: a for n, a in weights.items() if n not in _READOUT})
    made: dict[str, Array] = {}
    for at, own in layers.items():
        blocks = _blocks(ours, cell, own)
        for (role, gate), block in blocks.items():
            if (role, gate) not in homes(kept) and np.any(block):
                name = next(t.name for t in ours if (role, gate) in homes([t]))
                msg = f"{library} has no place for {name}{_suffix(OURS, at, layers)}, "
                msg += f"which is not 0: {np.abs(block).max():.3g} is its largest entry"
                raise OptionError(msg, where="to_library", hint=_REMEDIES[role])
        made |= _written(kept, fitted(cell, blocks, kept), _suffix(library, at, layers))
    return made


def gradients_to_library(library: str, cell: str, gradients: NamedArrays, *, bias: bool = True) -> dict[str, Array]:
    """The gradients by a library's parameters, from those by ours: by the chain rule, through `from_library`.

    Args:
        library: torch, keras, flax, nnx, nnx_apart, equinox or lasagne.
        cell: elman, gru, gru_before (Keras's GRU with ``reset_after=False``) or lstm.
        gradients: by the weights of a `gradaudit.RecurrentSpec`; those of a readout are left out.
        bias: whether the library's layer has one.

    Returns:
        The gradients by the library's parameters; of two biases that are added up, both have the same.

    Raises:
        OptionError: an unknown library or cell, or one that the library does not have.
        ModelContractError: names that the cell does not have or lacks, shapes that do not fit.
    """
    kept = _kept(library, cell, bias=bias)
    layers = _by_layer(OURS, {n: a for n, a in gradients.items() if n not in _READOUT})
    made: dict[str, Array] = {}
    for at, own in layers.items():
        blocks = _blocks(tensors(cell)[OURS], cell, own)
        for gate in GATES[cell]:
            blocks.setdefault(("recurrent_bias", gate), blocks["bias", gate])
        made |= _written(kept, blocks, _suffix(library, at, layers))
    return made


def _stored(library: str, cell: str) -> tuple[Tensor, ...]:
    if cell not in GATES:
        msg = f"unknown cell {cell!r}"
        raise OptionError(msg, where="gradaudit.conventions", hint=f"one of {', '.join(GATES)}")
    known = {name: stored for name, stored in tensors(cell).items() if name != OURS}
    if library not in known:
        msg = (
            f"{library} has no {cell}"
            if library in tensors("lstm") and library != OURS
            else f"unknown library {library!r}"
        )
        raise OptionError(msg, where="gradaudit.conventions", hint=f"{cell} is known of {', '.join(known)}")
    return known[library]


def _kept(library: str, cell: str, *, bias: bool) -> tuple[Tensor, ...]:
    return tuple(t for t in _stored(library, cell) if bias or t.part != "bias")


def _by_layer(library: str, arrays: NamedArrays) -> dict[tuple[int, bool], dict[str, Array]]:
    """By level and whether it is the reverse direction, the parameters by their own names."""
    layers: dict[tuple[int, bool], dict[str, Array]] = {}
    for name, array in arrays.items():
        match = _NAME.fullmatch(name)
        assert match is not None  # no name is empty
        own, level, reverse = match.groups()
        layers.setdefault((int(level or 0), reverse is not None), {})[own] = np.asarray(array)
    if set(layers) not in ({(0, False), (0, True)}, {(level, False) for level in range(len(layers))}) or not layers:
        found = ", ".join(f"_l{level}{'_reverse' if reverse else ''}" for level, reverse in sorted(layers)) or "none"
        msg = f"the parameters are those of the layers {found}"
        hint = "_l0, _l1, ... in one direction, or one layer in both; of others convert each alone, "
        raise OptionError(msg, where=library, hint=hint + "or with the recipes of `gradaudit.conventions`")
    return dict(sorted(layers.items()))


def _suffix(library: str, at: tuple[int, bool], layers: Container[tuple[int, bool]]) -> str:
    """What stands behind the names of this one of the layers' parameters."""
    level, reverse = at
    numbered = library == "torch" or (1, False) in layers
    return (f"_l{level}" if numbered else "") + ("_reverse" if reverse else "")


def _blocks(stored: tuple[Tensor, ...], cell: str, own: NamedArrays) -> Blocks:
    """The blocks of a layer of which these are all parameters."""
    parts = {t.part for t in stored if t.name in own} | {"weight"}
    wanted = {t.name for t in stored if t.part in parts}
    if wanted != set(own):
        extra, lacking = sorted(set(own) - wanted), sorted(wanted - set(own))
        what = [f"has {', '.join(extra)}"] * bool(extra) + [f"lacks {', '.join(lacking)}"] * bool(lacking)
        msg, names = f"a layer of {cell} {' and '.join(what)}", ", ".join(t.name for t in stored)
        hint = f"its parameters are {names}; behind that may stand _l0, _l1, ... and _reverse, before it nothing"
        raise ModelContractError(msg, where="gradaudit.conventions", hint=hint)
    read = {t.name: t.read(own[t.name]) for t in stored if t.name in own}
    blocks = {key: block for part in read.values() for key, block in part.items()}
    width = blocks["recurrent", GATES[cell][0]].shape[-1]
    n_inputs = len(blocks["input", GATES[cell][0]])
    for name, part in read.items():
        for (role, gate), block in part.items():
            wanted_shape = {"input": (n_inputs, width), "recurrent": (width, width)}.get(role, (width,))
            if block.shape != wanted_shape:
                msg = f"{name} has shape {own[name].shape}, of which gate {gate} of {cell} gets {block.shape}"
                hint = f"{wanted_shape}, with {width} units; is it another cell?"
                raise ModelContractError(msg, where="gradaudit.conventions", hint=hint)
    return blocks


def _written(stored: tuple[Tensor, ...], blocks: Blocks, suffix: str) -> dict[str, Array]:
    """The parameters of which there are blocks."""
    there = [t for t in stored if all((role, gate) in blocks for role in t.roles for gate in t.gates)]
    return {t.name + suffix: t.write(blocks) for t in there}
