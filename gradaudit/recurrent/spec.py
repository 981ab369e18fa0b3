"""What a recurrent network is, in words that every backend understands: its spec, seeded weights and seeded data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import numpy as np

from gradaudit.arrays import Array
from gradaudit.errors import ModelContractError, OptionError

__all__ = ["Activation", "Cell", "Layer", "RecurrentSpec", "SequenceData", "initial_weights", "random_sequences"]

Activation = Literal["identity", "tanh", "relu", "sigmoid", "softmax"]
Cell = Literal["elman", "gru", "gru_before", "lstm"]

#: Gates whose pre-activations stand side by side in W, R and b, in this order: i, f, g, o (LSTM), r, z, n (GRU).
N_GATES: dict[Cell, int] = {"elman": 1, "gru": 3, "gru_before": 3, "lstm": 4}
REVERSE = "_reverse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One recurrent layer, in one direction.

    Attributes:
        suffix: of the names of its parameters.
        n_inputs: the dimension of what it reads.
    """

    suffix: str
    n_inputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentSpec:
    """Recurrent layers with a categorical cross-entropy on their outputs.

    With D features, H hidden units, C classes and G gates, a layer has W (D, G H), R (H, G H), b (G H,), and h0 (H,),
    the same for all sequences, where the initial state is learned (otherwise it is zero):

    - ``elman`` (Elman 1990), G = 1: ``h' = activation(x W + h R + b)``.
    - ``lstm`` (Hochreiter & Schmidhuber 1997, Gers et al. 2000), gates i, f, g, o: ``c' = f c + i tanh(g)``,
      ``h' = o tanh(c')``; learned initial states h0 and c0. With peepholes (Gers et al. 2002) P (3, H): i and f see c,
      o sees c'.
    - ``gru`` (as in cuDNN, PyTorch, Keras), gates r, z, n: ``h' = (1 - z) n + z h`` with n reset after the product,
      ``n = tanh(x W_n + b_n + r (h R_n + bn))``; bn (H,).
    - ``gru_before`` (Cho et al. 2014), reset before the product: ``n = tanh(x W_n + (r h) R_n + b_n)``.

    Layer l > 1 reads the states h of layer l - 1; names then end in ``_l0``, ``_l1``, ... The other direction of a
    bidirectional layer runs from the last step to the first; its names end in ``_reverse``. Where ``n_hidden`` is
    given, the logits are ``h V + c``, V (H, C), or (2 H, C) if bidirectional, and c (C,); otherwise H = C, and h are
    the logits, or with Elman's softmax the class probabilities.

    Attributes:
        n_features: the number D.
        n_classes: the number C.
        cell: elman, lstm, gru or gru_before.
        n_hidden: the number H; without it there is no readout.
        n_layers: how many layers stand on each other.
        bidirectional: two layers, one in each direction of time; one layer of them, with a readout.
        peepholes: of an LSTM.
        activation: of Elman's layer: identity, tanh, relu, sigmoid or softmax (over the units).
        learn_initial_state: whether the initial states are parameters.
        outputs: ``"all"``: a loss at every step; ``"last"``: at the last step only.

    Raises:
        OptionError: a size below 1, an unknown word, or two that do not go together.
    """

    n_features: int
    n_classes: int
    cell: Cell = "elman"
    n_hidden: int | None = None
    n_layers: int = 1
    bidirectional: bool = False
    peepholes: bool = False
    activation: Activation = "softmax"
    learn_initial_state: bool = False
    outputs: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        for name in ("n_features", "n_classes", "n_hidden", "n_layers"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, Integral) or size < 1):
                msg = f"{name} must be a whole number, at least 1, got {size}"
                raise OptionError(msg, where="RecurrentSpec", hint=f"{name}=2")
        for name, words in (("cell", Cell), ("activation", Activation), ("outputs", Literal["all", "last"])):
            if getattr(self, name) not in get_args(words):
                msg = f"unknown {name} {getattr(self, name)!r}"
                raise OptionError(msg, where="RecurrentSpec", hint=f"one of {', '.join(get_args(words))}")
        if self.peepholes and self.cell != "lstm":
            msg = f"cell {self.cell} has no peepholes"
            raise OptionError(msg, where="RecurrentSpec", hint="cell='lstm', or peepholes=False")
        if self.bidirectional and (self.n_layers > 1 or self.n_hidden is None):
            msg = f"a bidirectional layer with n_layers={self.n_layers} and n_hidden={self.n_hidden}"
            hint = "n_layers=1 and n_hidden=4: one layer, whose two states a readout joins; above it a use at step u "
            raise OptionError(msg, where="RecurrentSpec", hint=hint + "would reach losses before u")

    @property
    def width(self) -> int:
        """The number H of hidden units."""
        return self.n_classes if self.n_hidden is None else self.n_hidden

    @property
    def gives_probabilities(self) -> bool:
        """Whether the outputs are class probabilities rather than logits."""
        return self.n_hidden is None and self.cell == "elman" and self.activation == "softmax"

    @property
    def components(self) -> tuple[str, ...]:
        """What the state of one layer consists of: h, and for an LSTM c."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def n_state(self) -> int:
        """S: the numbers in the state of all layers of one direction, for one sequence."""
        return self.n_layers * len(self.components) * self.width

    def layers(self, *, reverse: bool = False) -> Iterator[Layer]:
        """The layers of one direction, the lowest first."""
        for index in range(self.n_layers):
            level = f"_l{index}" if self.n_layers > 1 else ""
            n_inputs = self.width if index else self.n_features
            yield Layer(suffix=level + (REVERSE if reverse else ""), n_inputs=n_inputs)

    def initial_states(self, *, reverse: bool = False) -> list[str]:
        """The names of the learned initial states, in the order in which they make up the state; empty if not."""
        if not self.learn_initial_state:
            return []
        return [f"{c}0{layer.suffix}" for layer in self.layers(reverse=reverse) for c in self.components]

    def shapes(self, *, feed_forward: bool = False) -> dict[str, tuple[int, ...]]:
        """The parameter tensors of the recurrent network, or of the dense layer (W and b)."""
        d, h, c = self.n_features, self.width, self.n_classes
        if feed_forward:
            return {"W": (d, c), "b": (c,)}
        shapes: dict[str, tuple[int, ...]] = {}
        for reverse in (False, True)[: 1 + self.bidirectional]:
            for layer in self.layers(reverse=reverse):
                shapes |= self._layer_shapes(layer)
        if self.n_hidden is not None:
            shapes |= {"V": ((1 + self.bidirectional) * h, c), "c": (c,)}
        return shapes

    def _layer_shapes(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        h, wide = self.width, N_GATES[self.cell] * self.width
        shapes: dict[str, tuple[int, ...]] = {"W": (layer.n_inputs, wide), "R": (h, wide), "b": (wide,)}
        if self.cell == "gru":
            shapes["bn"] = (h,)
        if self.peepholes:
            shapes["P"] = (3, h)
        if self.learn_initial_state:
            shapes |= {f"{component}0": (h,) for component in self.components}
        return {name + layer.suffix: shape for name, shape in shapes.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SequenceData:
    """Labelled sequences, as arrays or what NumPy makes arrays of.

    Attributes:
        features: (N, T, D), numbers.
        labels: (N, T), whole numbers in 0..C-1.
        mask: (N, T), which steps there are; at the others the state stays as it is, and there is no loss.
        state: (N, S), the state before the first step, for example what the call before left after its T steps,
            ``model.states_after([T])[0]``; zero if not given. S is `RecurrentSpec.n_state`; the lowest layer comes
            first, and h before c.

    Raises:
        ModelContractError: shapes that do not fit, features that are no numbers, or labels that are not whole ones.
    """

    features: Array
    labels: Array
    mask: Array | None = None
    state: Array | None = None

    def __post_init__(self) -> None:
        for name in ("features", "labels", "mask", "state"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.asarray(given))
        for name, kinds, hint in (("features", "biuf", "real numbers"), ("labels", "biu", "labels.astype('int64')")):
            if (dtype := getattr(self, name).dtype).kind not in kinds:
                msg = f"{name} have dtype {dtype}"
                raise ModelContractError(msg, where="SequenceData", hint=hint)
        if self.features.ndim != 3 or self.labels.shape != self.features.shape[:2]:
            msg = f"features have shape {self.features.shape} and labels {self.labels.shape}"
            raise ModelContractError(msg, where="SequenceData", hint="features (N, T, D) and labels (N, T)")
        if self.mask is not None and (self.mask.shape != self.labels.shape or self.mask.dtype != bool):
            msg = f"mask has shape {self.mask.shape} and dtype {self.mask.dtype}"
            hint = f"bool, and the shape of the labels, {self.labels.shape}"
            raise ModelContractError(msg, where="SequenceData", hint=hint)
        if self.state is not None and (self.state.ndim != 2 or len(self.state) != len(self.features)):
            msg = f"state has shape {self.state.shape} for {len(self.features)} sequences"
            raise ModelContractError(msg, where="SequenceData", hint="state (N, S)")


def initial_weights(spec: RecurrentSpec, *, seed: int, dtype: str = "float32") -> dict[str, Array]:
    """The weights of the seed case: W standard normal, all else zero; equal on every backend for a seed."""
    weights = {name: np.zeros(shape, dtype) for name, shape in spec.shapes().items()}
    rng = np.random.default_rng([seed, 1])
    for name, weight in weights.items():
        if name.startswith("W"):
            weights[name] = rng.standard_normal(weight.shape).astype(dtype)
    return weights


def random_sequences(
    spec: RecurrentSpec, *, n_sequences: int, n_steps: int, seed: int, dtype: str = "float32"
) -> SequenceData:
    """Standard normal features and uniform random labels; equal on every backend for a seed.

    Raises:
        OptionError: fewer than one sequence or step.
    """
    for name, size in (("n_sequences", n_sequences), ("n_steps", n_steps)):
        if size < 1:
            msg = f"{name} must be at least 1, got {size}"
            raise OptionError(msg, where="random_sequences", hint=f"{name}=10")
    rng = np.random.default_rng([seed, 2])
    features = rng.standard_normal((n_sequences, n_steps, spec.n_features)).astype(dtype)
    return SequenceData(features=features, labels=rng.integers(spec.n_classes, size=(n_sequences, n_steps)))
