"""The networks of the seed case in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.torch import cells
from gradaudit.backends.torch.model import TorchModel, as_array, as_tensor
from gradaudit.backends.torch.state import threads
from gradaudit.recurrent import Problem

__all__ = ["TorchNetwork"]

#: Arrays of the size of one block of states that a batched evaluation holds at once, and what malloc leaves between.
_LIVE_BLOCKS = 8
#: Steps of fewer entries are computed on one thread. PyTorch leaves most functions of that size to one thread itself,
#: but not a softmax over columns, nor MKL a product; waiting for the others takes 10 times as long as computing, on a
#: busy machine 1,000 times.
_SMALL = 32_768


class TorchNetwork:
    """The network of a problem on the CPU: forward in blocks of time, backward by autograd.

    Args:
        problem: spec, weights, data and truncation; dtype float32 or float64.

    Raises:
        UnsupportedTruncationError: the truncation is neither none nor tail.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._spec = problem.spec
        self._inputs = as_tensor(problem.inputs())
        self._labels = as_tensor(problem.labels())
        self._loss_weights = as_tensor(problem.loss_weights())
        self._n_cut = problem.n_cut
        self._first = problem.n_cut if problem.held is not None else 0
        step = problem.n_sequences * self._spec.n_classes
        self._n_threads = 1 if step < _SMALL else None
        block = min(problem.n_steps, cells.BLOCK) * step
        self.model = TorchModel(
            self._loss,
            {name: as_tensor(weight) for name, weight in problem.weights.items()},
            batched=self._losses,
            point_bytes=_LIVE_BLOCKS * block * np.dtype(problem.dtype).itemsize,
            n_threads=self._n_threads,
        )

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step adds to the loss, (T,)."""
        with torch.no_grad(), threads(self._n_threads):
            return as_array(torch.cat(list(self._step_losses(_lead(parameters))), dim=1)[0])

    def state_after(self, parameters: NamedArrays, n_steps: int) -> Array:
        """The hidden state (N, H) after ``n_steps`` steps."""
        with torch.no_grad(), threads(self._n_threads):
            state = self._initial_state(stacked := _lead(parameters))
            # whole blocks, as in the pass that is audited: its very state, to the last bit
            for steps, states in cells.run(stacked, self._inputs, state, self._spec.activation):
                if n_steps <= steps.start:
                    break
                state = states[min(n_steps, steps.stop) - steps.start - 1]
        return as_array(state[0].T)

    def _initial_state(self, stacked: cells.Tensors) -> Tensor:
        shape = (len(stacked["b"]), self._spec.n_classes, self._problem.n_sequences)
        if self._problem.held is not None:
            return as_tensor(self._problem.held.state.T.astype(self._problem.dtype)).expand(shape)
        if "h0" in stacked:
            return stacked["h0"][:, :, None].expand(shape)
        return self._inputs.new_zeros(shape)

    def _blocks(self, stacked: cells.Tensors) -> Iterator[tuple[slice, Tensor]]:
        inputs, activation = self._inputs[self._first :], self._spec.activation
        if self._problem.feed_forward:
            return cells.dense(stacked, inputs, activation)
        return cells.run(stacked, inputs, self._initial_state(stacked), activation, self._n_cut - self._first)

    def _step_losses(self, stacked: cells.Tensors) -> Iterator[Tensor]:
        """What each step adds to the loss, by blocks of steps: (K, B)."""
        n_copies = len(stacked["b"])
        if self._problem.held is not None:
            yield as_tensor(self._problem.held.step_losses.astype(self._problem.dtype)).expand(n_copies, -1)
        first_loss = self._problem.n_steps - 1 if self._spec.outputs == "last" else 0
        for local, outputs in self._blocks(stacked):
            start, stop = self._first + local.start, self._first + local.stop
            # a step without a loss is left out, not weighted by 0: its cross-entropy may be infinite
            steps = slice(min(max(start, first_loss), stop), stop)
            yield outputs.new_zeros(n_copies, steps.start - start)
            entropies = cells.cross_entropy(outputs[steps.start - start :], self._labels[steps], self._spec.activation)
            yield (self._loss_weights[steps, None] * entropies).T

    def _losses(self, stacked: cells.Tensors) -> Tensor:
        # in float64: the roundings of a long sum would be noise in the loss
        sums = (block.sum(dim=1, dtype=torch.float64) for block in self._step_losses(stacked))
        losses = sum(sums, start=self._inputs.new_zeros((), dtype=torch.float64)).to(self._inputs.dtype)
        # plus an empty sum: where the cut is behind h0, its gradient is zero, not missing
        return losses + stacked["h0"][:, :0].sum(dim=1) if "h0" in stacked else losses

    def _loss(self, parameters: cells.Tensors) -> Tensor:
        return self._losses({name: p[None] for name, p in parameters.items()})[0]


def _lead(parameters: NamedArrays) -> cells.Tensors:
    return {name: as_tensor(p)[None] for name, p in parameters.items()}
