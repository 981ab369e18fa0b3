"""The networks in PyTensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytensor
from pytensor import tensor as pt

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.pytensor import cells
from gradaudit.backends.pytensor.model import Evaluation, PytensorModel, compiled
from gradaudit.backends.pytensor.modes import LIGHT
from gradaudit.recurrent import Problem
from gradaudit.recurrent.cells import State, by_layer

__all__ = ["PytensorNetwork"]

#: Arrays of the size of all states that a batched evaluation holds at once, measured.
_LIVE_OUTPUTS = 5


class PytensorNetwork:
    """The network of a problem: `pytensor.scan` over all steps, its own ``truncate_gradient`` for `tail`.

    Args:
        problem: spec, weights, data and truncation; dtype float32 or float64.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._spec = problem.spec
        n_cut = problem.truncation.k if self.truncates and problem.truncation.cuts(problem.n_steps) else None
        # with a readout, what it learns from the steps before the tail is no part of the scan
        self._truncate_gradient = -1 if n_cut is None else n_cut
        mask, crossing, offset = problem.mask(), problem.crossings(), problem.offsets()
        self._steps = cells.Steps(
            _data(problem.inputs()),
            None if mask is None else _data(mask[..., None]),
            None if crossing is None else _data(crossing.weights[..., None]),
            None if crossing is None else _data(crossing.held),
        )
        self._offset = None if offset is None else _data(offset[:, None])
        self._labels, self._negative_weights = _data(problem.labels()), _data(-problem.loss_weights())
        numbers = problem.n_steps * problem.n_sequences * max(self._spec.n_state, self._spec.n_classes)
        self.model = PytensorModel(
            lambda parameters: self._losses(_lead(parameters))[0],
            problem.weights,
            batched=self._losses,
            point_bytes=_LIVE_OUTPUTS * numbers * np.dtype(problem.dtype).itemsize,
            mode=LIGHT,
        )
        self._step_losses_of = Evaluation(lambda p: self._step_losses(_lead(p))[:, 0], problem.weights)
        self._states_of = Evaluation(lambda p: self._states(_lead(p)), problem.weights)

    @property
    def truncates(self) -> bool:
        """Whether its own gradient is truncated as its problem declares: for `tail`, by its scan."""
        return self._problem.truncation.kind == "tail" and not self._problem.both_ways

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step of each sequence adds to the loss, (T, N)."""
        return self._step_losses_of(parameters)

    def states(self, parameters: NamedArrays) -> Array:
        """(T+1, N, S): the state before the first step, then after each."""
        return self._states_of(parameters)

    def pulled(self, parameters: NamedArrays, state: Array, pull: Array) -> tuple[Scalar, Gradients, Array]:
        """Forward and backward from a state (N, S), with a pull (N, S) at the last one; see `protocols.Network`."""
        kind = self._problem.dtype
        symbols = {n: pt.tensor(n, dtype=kind, shape=p.shape) for n, p in parameters.items()}
        first, pulling = (pt.tensor(n, dtype=kind, shape=state.shape) for n in ("state", "pull"))
        stacked = _lead(symbols)
        walked = self._run(stacked, self._parts(first[None]), reverse=self._problem.side == "reverse")
        loss = self._of(stacked, walked).sum()
        last = pt.concatenate([c[-1, 0] for layer in walked for c in layer], axis=-1)
        wanted = [*symbols.values(), first]
        found = pytensor.grad(
            loss + (last * pulling).sum(), wanted, disconnected_inputs="ignore", return_disconnected="zero"
        )
        function = compiled([*wanted, pulling], [loss, *(g.astype(kind) for g in found)], LIGHT)
        value, *gradients, before = function(*parameters.values(), state.astype(kind), pull.astype(kind))
        named = {name: np.array(g) for name, g in zip(symbols, gradients, strict=True)}
        return as_scalar(np.asarray(value), "pulled()"), named, np.array(before)

    def _losses(self, stacked: cells.Tensors) -> Any:
        losses = self._step_losses(stacked).sum(axis=2).T.sum(axis=1)
        # plus empty sums: the gradient of weights that have no part in it is zero, not missing
        return losses + sum(p.flatten(2)[:, :0].sum(axis=1) for p in stacked.values())

    def _step_losses(self, stacked: cells.Tensors) -> Any:
        if self._problem.feed_forward:
            outputs = cells.dense(stacked, self._steps.inputs, self._spec.activation)
            return self._weighted(outputs)
        reverse = self._problem.side == "reverse"
        return self._of(stacked, self._run(stacked, self._initial_states(stacked, reverse=reverse), reverse=reverse))

    def _of(self, stacked: cells.Tensors, walked: list[State]) -> Any:
        """What each step of each sequence adds to the loss, (T, K, N), from all states."""
        outputs = cells.logits(self._spec, stacked, walked[-1][0], reverse=self._problem.side == "reverse")
        if self._offset is not None:
            outputs = outputs + self._offset
        if self._problem.both_ways:
            states = self._initial_states(stacked, reverse=True)
            behind = cells.run(self._spec, stacked, self._steps.turned(), states, reverse=True)
            outputs = outputs + cells.logits(self._spec, stacked, behind[-1][0], reverse=True)[::-1]
        return self._weighted(outputs)

    def _weighted(self, outputs: Any) -> Any:
        probabilities = self._spec.gives_probabilities
        return cells.step_losses(outputs, self._labels, self._negative_weights, probabilities=probabilities)

    def _states(self, stacked: cells.Tensors) -> Any:
        reverse = self._problem.side == "reverse"
        begun = self._initial_states(stacked, reverse=reverse)
        walked = self._run(stacked, begun, reverse=reverse)
        first = pt.concatenate([c for layer in begun for c in layer], axis=-1)
        after = pt.concatenate([c for layer in walked for c in layer], axis=-1)
        return pt.concatenate([first, after[:, 0]])

    def _run(self, stacked: cells.Tensors, states: list[State], *, reverse: bool) -> list[State]:
        return cells.run(
            self._spec, stacked, self._steps, states, reverse=reverse, truncate_gradient=self._truncate_gradient
        )

    def _initial_states(self, stacked: cells.Tensors, *, reverse: bool) -> list[State]:
        """By layer and component, (K, N, H)."""
        start = self._problem.start_state()
        n_copies = next(iter(stacked.values())).shape[0]
        given = [self._spread(c[None], n_copies) for c in self._split(start.state)]
        if (names := self._spec.initial_states(reverse=reverse)) and start.live.any():
            live = np.asarray(start.live)[:, None]
            pairs = zip(names, given, strict=True)
            given = [pt.switch(live, stacked[name][:, None], c) for name, c in pairs]
        return by_layer(self._spec, given)

    def _parts(self, state: Any) -> list[State]:
        """A state (K, N, S) by layer and component."""
        width, n = self._spec.width, self._spec.n_layers * len(self._spec.components)
        return by_layer(self._spec, [state[..., i * width : (i + 1) * width] for i in range(n)])

    def _split(self, state: Array) -> list[Array]:
        return np.split(state, self._spec.n_layers * len(self._spec.components), axis=1)

    def _spread(self, state: Array, n_copies: Any) -> Any:
        return pt.broadcast_to(state, (n_copies, *state.shape[1:]))


def _data(array: Array) -> Any:
    return pytensor.shared(array, shape=array.shape)


def _lead(parameters: Mapping[str, Any]) -> cells.Tensors:
    return {name: p[None] for name, p in parameters.items()}
