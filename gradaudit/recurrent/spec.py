"""What a network is, in words that every backend understands: spec, seeded weights, seeded data, and the problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from gradaudit.arrays import Array, NamedArrays, frozen_copy
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.recurrent.truncation import Truncation, none

__all__ = ["Activation", "Held", "Problem", "RecurrentSpec", "SequenceData", "initial_weights", "random_sequences"]

Activation = Literal["identity", "tanh", "relu", "sigmoid", "softmax"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentSpec:
    """An Elman layer (Elman 1990) with a categorical cross-entropy on its outputs.

    ``h_t = activation(x_t @ W + h_{t-1} @ R + b)`` with D features and H classes: W (D, H), R (H, H), b (H,), and
    h0 (H,), the same for all sequences, where the initial state is learned (otherwise it is zero). The outputs h_t
    are class probabilities where the activation is softmax; otherwise they are logits.

    Attributes:
        n_features: the number D.
        n_classes: the number H.
        activation: identity, tanh, relu, sigmoid or softmax (over the classes).
        learn_initial_state: whether h0 is a parameter.
        outputs: ``"all"``: a loss at every step; ``"last"``: at the last step only.

    Raises:
        OptionError: a size below 1 or an unknown word.
    """

    n_features: int
    n_classes: int
    activation: Activation = "softmax"
    learn_initial_state: bool = False
    outputs: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        for name in ("n_features", "n_classes"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise OptionError(msg, where="RecurrentSpec", hint=f"{name}=2")
        if self.activation not in get_args(Activation):
            msg = f"unknown activation {self.activation!r}"
            raise OptionError(msg, where="RecurrentSpec", hint=f"one of {', '.join(get_args(Activation))}")
        if self.outputs not in ("all", "last"):
            msg = f"unknown outputs {self.outputs!r}"
            raise OptionError(msg, where="RecurrentSpec", hint="'all' or 'last'")

    def shapes(self, *, feed_forward: bool = False) -> dict[str, tuple[int, ...]]:
        """The parameter tensors of the recurrent layer, or of the dense layer (W and b)."""
        d, h = self.n_features, self.n_classes
        if feed_forward:
            return {"W": (d, h), "b": (h,)}
        return {"W": (d, h), "R": (h, h), "b": (h,)} | ({"h0": (h,)} if self.learn_initial_state else {})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SequenceData:
    """Labelled sequences: features (N, T, D) and class labels (N, T), whole numbers in 0..H-1."""

    features: Array
    labels: Array

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or self.labels.shape != self.features.shape[:2]:
            msg = f"features have shape {self.features.shape} and labels {self.labels.shape}"
            raise ModelContractError(msg, where="SequenceData", hint="features (N, T, D) and labels (N, T)")


def initial_weights(spec: RecurrentSpec, *, seed: int, dtype: str = "float32") -> dict[str, Array]:
    """The weights of the seed case: W standard normal, R, b (and h0) zero; equal on every backend for a seed."""
    weights = {name: np.zeros(shape, dtype) for name, shape in spec.shapes().items()}
    weights["W"] = np.random.default_rng([seed, 1]).standard_normal(weights["W"].shape).astype(dtype)
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """The cut values of a truncated run at the base point.

    Attributes:
        state: h_c (N, H), the state that enters the first step of the backward pass.
        step_losses: (c,) the losses of the c steps before it.
    """

    state: Array
    step_losses: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """All that a backend needs to know to build a network: the spec, its weights, its data, its truncation.

    Attributes:
        weights: the base point; its dtype is the network's.
        feed_forward: a dense layer on all N*T vectors as one batch, instead of the recurrent layer.
        held: hold the cut values at these numbers: the frozen objective, whose ordinary derivative is the truncated
            gradient.

    Raises:
        ModelContractError: weights or data do not fit the spec.
    """

    spec: RecurrentSpec
    weights: NamedArrays
    data: SequenceData
    truncation: Truncation = field(default_factory=none)
    feed_forward: bool = False
    held: Held | None = None

    def __post_init__(self) -> None:
        shapes = self.spec.shapes(feed_forward=self.feed_forward)
        given = {name: tuple(np.shape(w)) for name, w in self.weights.items()}
        if given != shapes:
            msg = f"weights are {given}"
            raise ModelContractError(msg, where="weights", hint=f"this spec wants {shapes}")
        dtypes = sorted({str(w.dtype) for w in self.weights.values()})
        if len(dtypes) > 1:
            msg = f"weights have different dtypes: {', '.join(dtypes)}"
            raise ModelContractError(msg, where="weights", hint="give them all one dtype")
        if self.data.features.shape[2] != self.spec.n_features:
            msg = f"the features have {self.data.features.shape[2]} dimensions"
            raise ModelContractError(msg, where="data", hint=f"this spec wants {self.spec.n_features}")
        labels = self.data.labels
        if labels.min() < 0 or labels.max() >= self.spec.n_classes:
            msg = f"the labels run from {labels.min()} to {labels.max()}"
            raise ModelContractError(msg, where="data", hint=f"this spec wants 0 to {self.spec.n_classes - 1}")
        object.__setattr__(self, "weights", frozen_copy(self.weights))

    @property
    def dtype(self) -> str:
        """The dtype of the weights, in which everything is computed."""
        return str(next(iter(self.weights.values())).dtype)

    @property
    def n_sequences(self) -> int:
        """N."""
        return int(self.data.features.shape[0])

    @property
    def n_steps(self) -> int:
        """T."""
        return int(self.data.features.shape[1])

    @property
    def n_cut(self) -> int:
        """How many leading steps the backward pass never visits; 0 for a feed-forward net."""
        return 0 if self.feed_forward else self.truncation.n_cut_steps(self.n_steps)

    def inputs(self) -> Array:
        """Features with time first, (T, N, D), in the network's dtype."""
        return np.ascontiguousarray(self.data.features.swapaxes(0, 1), dtype=self.dtype)

    def labels(self) -> Array:
        """Labels with time first, (T, N), int64."""
        return np.ascontiguousarray(self.data.labels.T, dtype=np.int64)

    def loss_weights(self) -> Array:
        """What a cross-entropy at step t weighs in the mean, (T,), in the network's dtype: their sum is 1/N."""
        weights = np.full(self.n_steps, 1.0 / (self.n_sequences * self.n_steps))
        if self.spec.outputs == "last":
            weights[:] = 0.0
            weights[-1] = 1.0 / self.n_sequences
        return weights.astype(self.dtype)
