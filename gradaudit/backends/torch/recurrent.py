"""The networks in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.torch import cells
from gradaudit.backends.torch.model import TorchModel, as_array, as_tensor
from gradaudit.backends.torch.state import threads
from gradaudit.recurrent import Problem
from gradaudit.recurrent.cells import State, by_layer

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
        problem: spec, weights and data; dtype float32 or float64.
    """

    truncates = False

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._spec = problem.spec
        self._labels = as_tensor(problem.labels())
        self._loss_weights = as_tensor(problem.loss_weights())
        self._weighs = [bool(w.any()) for w in problem.loss_weights()]
        self._some_free = not problem.loss_weights().all()
        self._start = as_tensor(problem.start_state().state.T)
        self._live = as_tensor(problem.start_state().live)
        mask, crossing, offset = problem.mask(), problem.crossings(), problem.offsets()
        self._steps = cells.Steps(
            as_tensor(problem.inputs()),
            None if mask is None else as_tensor(mask[:, None]),
            None if crossing is None else as_tensor(crossing.weights[:, None]),
            None if crossing is None else as_tensor(crossing.held.swapaxes(1, 2)),
        )
        self._offset = None if offset is None else as_tensor(offset.swapaxes(1, 2))
        step = problem.n_sequences * max(self._spec.n_state, self._spec.n_classes)
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
        """What each step of each sequence adds to the loss, (T, N)."""
        with torch.no_grad(), threads(self._n_threads):
            return as_array(torch.cat(list(self._step_losses(_lead(parameters))))[:, 0])

    def states(self, parameters: NamedArrays) -> Array:
        """(T+1, N, S): the state before the first step, then after each."""
        reverse = self._problem.side == "reverse"
        with torch.no_grad(), threads(self._n_threads):
            begun = self._initial_states(stacked := _lead(parameters), reverse=reverse)
            joined = [torch.cat([c[0] for state in begun for c in state])[None]]
            # whole blocks, as in the pass that is audited: its very states, to the last bit
            for _, kept in cells.run(self._spec, stacked, self._steps, begun, reverse=reverse):
                components = [torch.stack(steps)[:, 0] for walked in kept for steps in zip(*walked, strict=True)]
                joined.append(torch.cat(components, dim=1))
            return np.ascontiguousarray(as_array(torch.cat(joined)).swapaxes(1, 2))

    def pulled(self, parameters: NamedArrays, state: Array, pull: Array) -> tuple[Scalar, Gradients, Array]:
        """Forward and backward from a state (N, S), with a pull (N, S) at the last one; see `protocols.Network`."""
        kind = self._problem.dtype
        with torch.enable_grad(), threads(self._n_threads):
            leaves = {name: as_tensor(p).requires_grad_() for name, p in parameters.items()}
            first = as_tensor(state.T.astype(kind)).requires_grad_()
            given = [c[None] for c in first.split(self._spec.width)]
            states = by_layer(self._spec, given)
            loss = self._losses({name: leaf[None] for name, leaf in leaves.items()}, states)[0]
            # the run has left its last states there
            last = torch.cat([c[0] for layer in states for c in layer])
            wanted = [*leaves.values(), first]
            *found, before = torch.autograd.grad([loss, last], wanted, [None, as_tensor(pull.T.astype(kind))])
        gradients = {name: as_array(g) for name, g in zip(leaves, found, strict=True)}
        return as_scalar(as_array(loss), "pulled()"), gradients, np.ascontiguousarray(as_array(before).T)

    def _initial_states(self, stacked: cells.Tensors, *, reverse: bool) -> list[State]:
        """By layer and component, (K, H, N)."""
        n_copies = len(next(iter(stacked.values())))
        given = [c.expand(n_copies, -1, -1) for c in self._start.split(self._spec.width)]
        if (names := self._spec.initial_states(reverse=reverse)) and self._live.any():
            live = zip(names, given, strict=True)
            given = [torch.where(self._live, stacked[name][:, :, None], c) for name, c in live]
        return by_layer(self._spec, given)

    def _outputs(self, stacked: cells.Tensors, states: list[State] | None) -> Iterator[tuple[slice, Tensor]]:
        """Probabilities or logits, (B, K, C, N), by blocks of steps; the last states are left in ``states``."""
        if self._problem.feed_forward:
            yield from cells.dense(stacked, self._steps.inputs, self._spec.activation)
            return
        behind = self._behind(stacked) if self._problem.both_ways else None
        reverse = self._problem.side == "reverse"
        states = self._initial_states(stacked, reverse=reverse) if states is None else states
        for steps, kept in cells.run(self._spec, stacked, self._steps, states, reverse=reverse):
            outputs = self._read(stacked, torch.stack([state[0] for state in kept[-1]]), reverse=reverse)
            if self._offset is not None:
                outputs = outputs + self._offset[steps, None]
            yield steps, outputs if behind is None else outputs + behind[steps]

    def _read(self, stacked: cells.Tensors, states: Tensor, *, reverse: bool) -> Tensor:
        """The logits (B, K, C, N) of the top layer's states (B, K, H, N); of the reverse direction without the bias."""
        if self._spec.n_hidden is None:
            return states
        rows = slice(self._spec.width, None) if reverse else slice(self._spec.width)
        readout = stacked["V"][:, rows].mT @ states
        return readout if reverse else readout + stacked["c"][:, :, None]

    def _behind(self, stacked: cells.Tensors) -> Tensor:
        """What the reverse direction adds to the logits, (T, K, C, N), in the order of time."""
        states = self._initial_states(stacked, reverse=True)
        blocks = cells.run(self._spec, stacked, self._steps.each(lambda a: a.flip(0)), states, reverse=True)
        tops = [torch.stack([state[0] for state in kept[-1]]) for _, kept in blocks]
        return self._read(stacked, torch.cat(tops), reverse=True).flip(0)

    def _step_losses(self, stacked: cells.Tensors, states: list[State] | None = None) -> Iterator[Tensor]:
        """What each step of each sequence adds to the loss, by blocks of steps: (B, K, N)."""
        for steps, outputs in self._outputs(stacked, states):
            if not any(self._weighs[steps]):
                yield outputs.new_zeros(*outputs.shape[:2], outputs.shape[3])
                continue
            weights = self._loss_weights[steps]
            # what weighs nothing is replaced, not multiplied by 0: its cross-entropy may be infinite
            free = weights[:, None, None] == 0
            counted = torch.where(free, torch.ones_like(outputs), outputs) if self._some_free else outputs
            entropies = cells.cross_entropy(counted, self._labels[steps], probabilities=self._spec.gives_probabilities)
            yield weights[:, None] * entropies

    def _losses(self, stacked: cells.Tensors, states: list[State] | None = None) -> Tensor:
        # in float64: the roundings of a long sum would be noise in the loss
        blocks = (block.sum(dim=-1) for block in self._step_losses(stacked, states))
        sums = (block.sum(dim=0, dtype=torch.float64) for block in blocks)
        losses = sum(sums, start=self._loss_weights.new_zeros((), dtype=torch.float64)).to(self._loss_weights.dtype)
        # plus empty sums: the gradient of weights that have no part in it is zero, not missing
        return losses + sum(p.flatten(1)[:, :0].sum(dim=1) for p in stacked.values())

    def _loss(self, parameters: cells.Tensors) -> Tensor:
        return self._losses({name: p[None] for name, p in parameters.items()})[0]


def _lead(parameters: NamedArrays) -> cells.Tensors:
    return {name: as_tensor(p)[None] for name, p in parameters.items()}
