"""The networks of the seed case in NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.backends.numpy import cells
from gradaudit.backends.numpy.model import NumpyModel
from gradaudit.recurrent import Problem

__all__ = ["NumpyNetwork"]

#: Arrays of the size of one block of states that a batched evaluation holds at once.
_LIVE_BLOCKS = 4


class NumpyNetwork:
    """The network of a problem: forward in blocks of time, backward by hand.

    Args:
        problem: spec, weights, data and truncation; dtype float32 or float64.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._spec = problem.spec
        self._inputs = problem.inputs()
        self._labels = problem.labels()
        self._loss_weights = problem.loss_weights()
        self._first = problem.n_cut if problem.held is not None else 0
        block = min(problem.n_steps, cells.BLOCK) * problem.n_sequences * self._spec.n_classes
        self.model = NumpyModel(
            self._loss,
            problem.weights,
            value_and_grad=self._loss_and_gradients,
            batched=self._losses,
            jvp=self._directional,
            point_bytes=_LIVE_BLOCKS * block * np.dtype(problem.dtype).itemsize,
        )

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step adds to the loss, (T,)."""
        return np.asarray(self._batched_step_losses(_lead(parameters))[0])

    def state_after(self, parameters: NamedArrays, n_steps: int) -> Array:
        """The hidden state (N, H) after ``n_steps`` steps."""
        state = self._initial_state(_lead(parameters))
        for _, states in cells.run(_lead(parameters), self._inputs[:n_steps], state, self._spec.activation):
            state = states[-1]
        return np.array(state[0].T)

    def _initial_state(self, stacked: NamedArrays) -> Array:
        shape = (len(stacked["b"]), self._spec.n_classes, self._problem.n_sequences)
        if self._problem.held is not None:
            held = self._problem.held.state.T.astype(self._problem.dtype)
            return np.broadcast_to(held, shape)
        if "h0" in stacked:
            return np.broadcast_to(stacked["h0"][:, :, None], shape)
        return np.zeros(shape, self._problem.dtype)

    def _blocks(self, stacked: NamedArrays) -> Iterator[tuple[slice, Array]]:
        inputs, activation = self._inputs[self._first :], self._spec.activation
        if self._problem.feed_forward:
            yield from cells.dense(stacked, inputs, activation)
        else:
            yield from cells.run(stacked, inputs, self._initial_state(stacked), activation)

    def _batched_step_losses(self, stacked: NamedArrays) -> Array:
        losses = np.empty((len(stacked["b"]), self._problem.n_steps), self._problem.dtype)
        if self._problem.held is not None:
            losses[:, : self._first] = self._problem.held.step_losses
        for local, outputs in self._blocks(stacked):
            steps = slice(self._first + local.start, self._first + local.stop)
            entropies = cells.cross_entropy(outputs, self._labels[steps], self._spec.activation)
            weights = self._loss_weights[steps, None]
            # a step without a loss adds nothing, not even where its cross-entropy is infinite
            losses[:, steps] = np.where(weights == 0, np.zeros_like(entropies), weights * entropies).T
        return losses

    def _losses(self, stacked: NamedArrays) -> Array:
        # the last axis is contiguous: NumPy sums it pairwise, with an error that hardly grows with T
        return np.asarray(self._batched_step_losses(stacked).sum(axis=1))

    def _loss(self, parameters: NamedArrays) -> Scalar:
        loss: Scalar = self._losses(_lead(parameters))[0]
        return loss

    def _states(self, parameters: NamedArrays) -> tuple[Array, Array]:
        """The states of the steps that count, (L, H, N), and the state before them, (H, N)."""
        stacked = _lead(parameters)
        states = np.concatenate([states[:, 0] for _, states in self._blocks(stacked)])
        if self._problem.feed_forward:
            return states, np.zeros_like(states[0])
        skipped = self._problem.n_cut - self._first
        before = states[skipped - 1] if skipped else np.array(self._initial_state(stacked)[0])
        return states[skipped:], before

    def _loss_and_gradients(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        activation = self._spec.activation
        states, before = self._states(parameters)
        cotangents, inputs = self._output_cotangents(states), self._inputs[self._problem.n_cut :]
        if self._problem.feed_forward:
            adjoints = cells.jacobian_product(states, cotangents, activation)
        else:
            adjoints = cells.back(parameters["R"], states, cotangents, activation)
        # (H, L*N): the long axis is contiguous, so the sum over it is pairwise and the products are one BLAS call each
        flat = np.ascontiguousarray(adjoints.transpose(1, 0, 2)).reshape(self._spec.n_classes, -1)
        gradients: dict[str, Array | None] = {
            "W": (flat @ inputs.reshape(-1, self._spec.n_features)).T,
            "b": flat.sum(axis=1),
        }
        if not self._problem.feed_forward:
            previous = np.concatenate([before[None], states[:-1]]).transpose(1, 0, 2)
            gradients["R"] = previous.reshape(self._spec.n_classes, -1) @ flat.T
        if "h0" in parameters:
            live = self._problem.n_cut == 0
            gradients["h0"] = (parameters["R"] @ adjoints[0]).sum(axis=1) if live else np.zeros_like(parameters["h0"])
        return self._loss(parameters), {name: gradients[name] for name in parameters}

    def _output_cotangents(self, states: Array) -> Array:
        first = self._problem.n_cut
        gradient = cells.cross_entropy_gradient(states, self._labels[first:], self._spec.activation)
        weights = self._loss_weights[first:, None, None]
        # a step without a loss has no gradient, not even where its cross-entropy is infinite
        return np.where(weights == 0, np.zeros_like(gradient), weights * gradient)

    def _directional(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        states, before = self._states(parameters)
        inputs = self._inputs[self._problem.n_cut :]
        if self._problem.feed_forward:
            sources = cells.dense({n: t[None] for n, t in tangents.items()}, inputs, "identity")
            moved = np.concatenate([block[:, 0] for _, block in sources])
            dots = cells.jacobian_product(states, moved, self._spec.activation)
        else:
            live = {n: t for n, t in tangents.items() if n != "h0" or self._problem.n_cut == 0}
            dots = cells.tangent(live, parameters, inputs, states, before, self._spec.activation)
        return float((self._output_cotangents(states) * dots).sum())


def _lead(parameters: NamedArrays) -> NamedArrays:
    return {name: np.asarray(p)[None] for name, p in parameters.items()}
