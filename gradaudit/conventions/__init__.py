"""How layers are stored: ready-made recipes from the parameters of one library's layer to those of another's.

Each function takes two places, the first model's and the port's, for example ``lstm(torch="lstm",
keras="net/lstm/lstm_cell")``, and returns ``{name of the port's parameter: recipe}`` for the ``mapping`` of
`gradaudit.audit_all`. A place is the prefix of the layer's parameters, as the report prints them; a ``*`` says where
their own names stand, if not at its end (``"lstm.*_l1"``: the second layer of a `torch.nn.LSTM`). The library
``gradaudit`` is `gradaudit.RecurrentSpec`.

`from_library`, `to_library` and `gradients_to_library` convert all of a recurrent layer at once, from and to
`gradaudit.RecurrentSpec`.
"""

from __future__ import annotations

from typing_extensions import Unpack

from gradaudit.conventions.cells import gate_names, recurrent
from gradaudit.conventions.layers import from_library, gradients_to_library, to_library
from gradaudit.conventions.places import Places, Recipes, full, two
from gradaudit.conventions.plain import DENSE, EMBEDDING, NORM, plain

__all__ = [
    "Places",
    "batch_norm",
    "conv",
    "dense",
    "embedding",
    "from_library",
    "gate_names",
    "gradients_to_library",
    "gru",
    "layer_norm",
    "lstm",
    "rnn",
    "to_library",
]


def lstm(
    *, bias: bool = True, peepholes: bool = False, learn_initial_state: bool = False, **places: Unpack[Places]
) -> Recipes:
    """An LSTM layer.

    Args:
        bias: False: without one.
        peepholes: with them; Lasagne and `gradaudit.RecurrentSpec`.
        learn_initial_state: its initial state is a parameter; the same two.
        places: two of them.

    Raises:
        OptionError: not two places, or a library whose layer has no such parameters.
    """
    return recurrent("lstm", places, bias=bias, peepholes=peepholes, learn_initial_state=learn_initial_state)


def gru(
    *, bias: bool = True, reset_after: bool = True, learn_initial_state: bool = False, **places: Unpack[Places]
) -> Recipes:
    """A GRU layer; Flax NNX and Lasagne have no place for PyTorch's ``b_hn``.

    Where Keras's two biases become one, they are two entries of one parameter added up: no correspondence of entries,
    which a mapping has to be; as a function of arrays, the recipe is right.

    Args:
        bias: False: without one.
        reset_after: the product, as in Keras by default; False: before it, Keras and `gradaudit.RecurrentSpec`.
        learn_initial_state: its initial state is a parameter; Lasagne and `gradaudit.RecurrentSpec`.
        places: two of them.

    Raises:
        OptionError: not two places, or a library whose layer has no such parameters.
    """
    cell = "gru" if reset_after else "gru_before"
    return recurrent(cell, places, bias=bias, learn_initial_state=learn_initial_state)


def rnn(*, bias: bool = True, learn_initial_state: bool = False, **places: Unpack[Places]) -> Recipes:
    """An Elman layer; Equinox has none.

    Args:
        bias: False: without one.
        learn_initial_state: its initial state is a parameter; Lasagne and `gradaudit.RecurrentSpec`.
        places: two of them.

    Raises:
        OptionError: not two places, or a library whose layer has no such parameters.
    """
    return recurrent("elman", places, bias=bias, learn_initial_state=learn_initial_state)


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
