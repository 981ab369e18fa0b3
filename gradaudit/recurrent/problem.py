"""All that a backend needs to know to compute a network: its spec, weights and data, and from where its runs start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from gradaudit.arrays import Array, NamedArrays, frozen_copy
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.recurrent.spec import RecurrentSpec, SequenceData
from gradaudit.recurrent.truncation import Truncation, none

__all__ = ["Crossing", "Problem", "Start"]


class Start(NamedTuple):
    """From where each sequence runs.

    Attributes:
        state: (N, S), held states.
        live: (N,), which sequences start from the network's own initial state instead.
    """

    state: Array
    live: Array


class Crossing(NamedTuple):
    """How much of the gradient passes from one step to the next.

    The state h that enters step t is replaced by ``held_t + w_t (h - held_t)``, by ``held_t`` where w_t = 0. Where the
    held states are those of the run, no value changes.

    Attributes:
        weights: (T, N), w_t.
        held: (T, N, S).
    """

    weights: Array
    held: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A network to compute, forward and backward.

    A backend differentiates all of it: a truncated gradient is made of the full gradients of other problems, see
    `gradaudit.recurrent.segments`.

    Attributes:
        weights: the base point; its dtype is the network's.
        truncation: what the network declares; only a backend whose framework truncates by itself reads it.
        feed_forward: a dense layer on all N*T vectors as one batch, instead of the recurrent layers.
        weighting: (T, N), what the cross-entropy of a step of a sequence weighs; by default their mean, or that of the
            last ones.
        start: from where the sequences run; by default from the data's state, or the learned one.
        crossing: of the states between the steps; by default they pass as they are.
        side: of a bidirectional network the one direction that is run, ``features`` being in its order of time; what
            the other one adds to the logits is in ``offset``.
        offset: (T, N, C), numbers that are added to the logits.
        checkpoint: keep the states of every so many steps only, and run the steps between once more on the way back.

    Raises:
        ModelContractError: weights or data do not fit the spec.
    """

    spec: RecurrentSpec
    weights: NamedArrays
    data: SequenceData
    truncation: Truncation = field(default_factory=none)
    feed_forward: bool = False
    weighting: Array | None = None
    start: Start | None = None
    crossing: Crossing | None = None
    side: Literal["forward", "reverse"] | None = None
    offset: Array | None = None
    checkpoint: int | None = None

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
        if next(iter(self.weights.values())).dtype.kind in "biuc":
            # every derivative would be that of a step function
            msg = f"weights have dtype {dtypes[0]}"
            raise ModelContractError(msg, where="weights", hint="w.astype('float32')")
        if self.data.features.shape[2] != self.spec.n_features:
            msg = f"the features have {self.data.features.shape[2]} dimensions"
            raise ModelContractError(msg, where="data", hint=f"this spec wants {self.spec.n_features}")
        labels = self.data.labels
        if labels.min() < 0 or labels.max() >= self.spec.n_classes:
            msg = f"the labels run from {labels.min()} to {labels.max()}"
            raise ModelContractError(msg, where="data", hint=f"this spec wants 0 to {self.spec.n_classes - 1}")
        if self.data.mask is not None and self.weighting is None and not self.data.mask.any():
            msg = "mask leaves no step of any sequence"
            raise ModelContractError(msg, where="data", hint="True where there is a step")
        if self.checkpoint is not None and (self.checkpoint < 1 or self.both_ways or self.feed_forward):
            msg = f"checkpoints every {self.checkpoint} steps of a network that runs both ways or without a state"
            if not self.both_ways and not self.feed_forward:
                msg = f"checkpoints every {self.checkpoint} steps"
            raise OptionError(msg, where="checkpointed()", hint="400 steps of a recurrent network that runs one way")
        self._check_state()
        object.__setattr__(self, "weights", frozen_copy(self.weights))

    def _check_state(self) -> None:
        state = self.data.state
        if state is None:
            return
        if self.spec.learn_initial_state or self.spec.bidirectional:
            msg = "the data carry a state, and the network learns its own or runs in both directions"
            raise OptionError(msg, where="SequenceData", hint="learn_initial_state=False, bidirectional=False")
        if state.shape[1] != self.spec.n_state:
            msg = f"the state has {state.shape[1]} numbers for each sequence"
            raise ModelContractError(msg, where="SequenceData", hint=f"this spec wants {self.spec.n_state}")

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
    def both_ways(self) -> bool:
        """Whether both directions are run."""
        return self.spec.bidirectional and self.side is None and not self.feed_forward

    def inputs(self) -> Array:
        """Features with time first, (T, N, D), in the network's dtype; 0 where the mask has no step."""
        features, mask = self.data.features, self.data.mask
        if mask is not None:
            # what stands in the padding may be anything, and 0 * NaN is NaN
            features = np.where(mask[:, :, None], features, 0)
        return np.ascontiguousarray(features.swapaxes(0, 1), dtype=self.dtype)

    def labels(self) -> Array:
        """Labels with time first, (T, N), int64."""
        return np.ascontiguousarray(self.data.labels.T, dtype=np.int64)

    def mask(self) -> Array | None:
        """The mask with time first, (T, N), bool; None where every sequence has all steps."""
        mask = self.data.mask
        return None if mask is None or mask.all() else np.ascontiguousarray(mask.T)

    def loss_weights(self) -> Array:
        """What the cross-entropy of a step of a sequence weighs, (T, N), in the network's dtype: their sum is 1."""
        if self.weighting is not None:
            return self.weighting.astype(self.dtype)
        shape = self.n_steps, self.n_sequences
        weights = np.ones(shape) if self.data.mask is None else self.data.mask.T.astype(float)
        if self.spec.outputs == "last":
            # a masked step has the state of the last one that there was
            weights = np.zeros(shape)
            weights[-1] = 1.0
        mean: Array = (weights / weights.sum()).astype(self.dtype)
        return mean

    def start_state(self) -> Start:
        """From where the sequences run, (N, S) in the network's dtype and (N,); zero where the network starts itself.

        Live is where the initial states are parameters.
        """
        if self.start is not None:
            return Start(self.start.state.astype(self.dtype), self.start.live)
        given = self.data.state
        state = np.zeros((self.n_sequences, self.spec.n_state)) if given is None else given
        return Start(state.astype(self.dtype), np.full(self.n_sequences, self.spec.learn_initial_state))

    def offsets(self) -> Array | None:
        """What is added to the logits, (T, N, C), in the network's dtype."""
        return None if self.offset is None else self.offset.astype(self.dtype)

    def crossings(self) -> Crossing | None:
        """The crossings in the network's dtype."""
        return None if self.crossing is None else Crossing(*(a.astype(self.dtype) for a in self.crossing))
