"""How layers are stored: ready-made recipes from the parameters of one library's layer to those of another's.

Each function takes two places, the first model's and the port's, for example ``lstm(torch="lstm",
keras="net/lstm/lstm_cell")``, and returns ``{name of the port's parameter: recipe}`` for the ``mapping`` of
`gradaudit.audit_all`. A place is the prefix of the layer's parameters, as the report prints them; a ``*`` says where
their own names stand, if not at its end (``"lstm.*_l1"``: the second layer of a `torch.nn.LSTM`).
"""

from __future__ import annotations

from typing_extensions import Unpack

from gradaudit.conventions.cells import gate_names, recurrent
from gradaudit.conventions.places import Places, Recipes, full, two
from gradaudit.conventions.plain import DENSE, EMBEDDING, NORM, plain

__all__ = ["Places", "batch_norm", "conv", "dense", "embedding", "gate_names", "gru", "layer_norm", "lstm", "rnn"]


def lstm(*, bias: bool = True, **places: Unpack[Places]) -> Recipes:
    """An LSTM layer; ``bias`` False: without one.

    Raises:
        OptionError: not two places.
    """
    return recurrent("lstm", places, bias=bias)


def gru(*, bias: bool = True, **places: Unpack[Places]) -> Recipes:
    """A GRU layer (Keras: ``reset_after=True``, its default); Flax NNX has no place for PyTorch's ``b_hn``.

    Raises:
        OptionError: not two places.
    """
    return recurrent("gru", places, bias=bias)


def rnn(*, bias: bool = True, **places: Unpack[Places]) -> Recipes:
    """An Elman layer; Equinox has none.

    Raises:
        OptionError: not two places.
    """
    return recurrent("rnn", places, bias=bias)


def dense(*, bias: bool = True, **places: Unpack[Places]) -> Recipes:
    """A dense or linear layer: (O, I) in PyTorch and Equinox, (I, O) in the others.

    Raises:
        OptionError: not two places.
    """
    return plain(DENSE, places, bias=bias)


def conv(*, bias: bool = True, **places: Unpack[Places]) -> Recipes:
    """A convolution over any number of axes: (O, I, ...) in PyTorch and Equinox, (..., I, O) in the others.

    Raises:
        OptionError: not two places.
    """
    (library, place), (target, target_place) = two(places, DENSE)
    recipes = plain(DENSE, places, bias=bias)
    if bias:
        offset = full(library, place, DENSE[library].bias)
        weight = full(library, place, DENSE[library].weight)
        # Equinox keeps it as (O, 1, ...)
        ones = int(target == "equinox")
        recipes[full(target, target_place, DENSE[target].bias)] = lambda p: p[offset].reshape(
            -1, *(1,) * ones * (p[weight].ndim - 2)
        )
    return recipes


def batch_norm(**places: Unpack[Places]) -> Recipes:
    """Scale and offset of a batch normalisation; its statistics are no parameters.

    Raises:
        OptionError: not two places.
    """
    return plain(NORM, places, bias=True)


def layer_norm(**places: Unpack[Places]) -> Recipes:
    """Scale and offset of a layer normalisation.

    Raises:
        OptionError: not two places.
    """
    return plain(NORM, places, bias=True)


def embedding(**places: Unpack[Places]) -> Recipes:
    """A table of embeddings.

    Raises:
        OptionError: not two places.
    """
    return plain(EMBEDDING, places, bias=False)
