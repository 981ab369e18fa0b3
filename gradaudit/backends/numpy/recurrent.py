"""The networks in NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.backends.numpy import cells
from gradaudit.backends.numpy.adjoint import LayerPass, jacobian_product
from gradaudit.backends.numpy.model import NumpyModel
from gradaudit.recurrent import Problem, RecurrentSpec, Start
from gradaudit.recurrent.cells import State, by_layer

__all__ = ["NumpyNetwork"]

#: Arrays of the size of one block of states that a batched evaluation holds at once.
_LIVE_BLOCKS = 4


class NumpyNetwork:
    """The network of a problem: forward in blocks of time, backward by hand.

    Args:
        problem: spec, weights and data; dtype float32 or float64.
    """

    truncates = False

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._spec = problem.spec
        self._labels = problem.labels()
        self._loss_weights = problem.loss_weights()
        self._start = problem.start_state()
        mask, crossing, offset = problem.mask(), problem.crossings(), problem.offsets()
        self._steps = cells.Steps(
            problem.inputs(),
            None if mask is None else mask[:, None],
            None if crossing is None else crossing.weights[:, None],
            None if crossing is None else crossing.held.swapaxes(1, 2),
        )
        self._offset = None if offset is None else offset.swapaxes(1, 2)
        numbers = self._spec.n_state + self._spec.n_classes
        block = min(problem.n_steps, cells.BLOCK) * problem.n_sequences * numbers
        self.model = NumpyModel(
            self._loss,
            problem.weights,
            value_and_grad=self._loss_and_gradients,
            batched=self._losses,
            jvp=self._complex_step,
            point_bytes=_LIVE_BLOCKS * block * np.dtype(problem.dtype).itemsize,
        )

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step of each sequence adds to the loss, (T, N)."""
        return np.concatenate([self._each(o, steps)[:, 0] for steps, o in self._outputs(_lead(parameters))])

    def states(self, parameters: NamedArrays) -> Array:
        """(T+1, N, S): the state before the first step, then after each."""
        stacked, reverse = _lead(parameters), self._problem.side == "reverse"
        begun = _initial_states(self._spec, self._start, stacked, reverse=reverse)
        first = np.concatenate([c[0] for state in begun for c in state])
        blocks = cells.run(self._spec, stacked, self._steps, begun, reverse=reverse)
        joined = [np.concatenate([c[:, 0] for layer in kept for c in layer], axis=1) for _, kept in blocks]
        return np.ascontiguousarray(np.concatenate([first[None], *joined]).swapaxes(1, 2))

    def pulled(self, parameters: NamedArrays, state: Array, pull: Array) -> tuple[Scalar, Gradients, Array]:
        """Forward and backward from a state (N, S), with a pull (N, S) at the last one; see `protocols.Network`."""
        start = Start(state.astype(self._problem.dtype), np.zeros(len(state), bool))
        reverse = self._problem.side == "reverse"
        stack = _Stack(self._problem, parameters, self._steps, start, reverse=reverse)
        outputs = stack.outputs() if self._offset is None else stack.outputs() + self._offset
        gradients = {name: np.zeros_like(p) for name, p in parameters.items()}
        first = stack.back(self._cotangents(outputs), gradients, pull.T.astype(self._problem.dtype))
        loss: Scalar = self._weighted(outputs[:, None], slice(None)).T.sum(axis=1)[0]
        return loss, gradients, np.ascontiguousarray(first.T)

    def _outputs(self, stacked: NamedArrays) -> Iterator[tuple[slice, Array]]:
        """Probabilities or logits, (B, K, C, N), by blocks of steps."""
        if self._problem.feed_forward:
            yield from cells.dense(stacked, self._steps.inputs, self._spec.activation)
            return
        behind = self._behind(stacked) if self._problem.both_ways else None
        reverse = self._problem.side == "reverse"
        states = _initial_states(self._spec, self._start, stacked, reverse=reverse)
        for steps, kept in cells.run(self._spec, stacked, self._steps, states, reverse=reverse):
            outputs = _read(self._spec, stacked, kept[-1][0], reverse=reverse)
            if self._offset is not None:
                outputs = outputs + self._offset[steps, None]
            yield steps, outputs if behind is None else outputs + behind[steps]

    def _behind(self, stacked: NamedArrays) -> Array:
        """What the reverse direction adds to the logits, (T, K, C, N), in the order of time."""
        states = _initial_states(self._spec, self._start, stacked, reverse=True)
        blocks = cells.run(self._spec, stacked, _turned(self._steps), states, reverse=True)
        return np.concatenate([_read(self._spec, stacked, kept[-1][0], reverse=True) for _, kept in blocks])[::-1]

    def _step_losses(self, stacked: NamedArrays) -> Array:
        kind = np.result_type(*stacked.values())
        losses = np.empty((len(next(iter(stacked.values()))), self._problem.n_steps), kind)
        for steps, outputs in self._outputs(stacked):
            losses[:, steps] = self._weighted(outputs, steps).T
        return losses

    def _weighted(self, outputs: Array, steps: slice) -> Array:
        """What some steps add to the loss, (B, K), from their outputs (B, K, C, N)."""
        return np.asarray(self._each(outputs, steps).sum(axis=-1))

    def _each(self, outputs: Array, steps: slice) -> Array:
        """The same of each sequence, (B, K, N)."""
        probabilities = self._spec.gives_probabilities
        entropies = cells.cross_entropy(outputs, self._labels[steps], probabilities=probabilities)
        weights = self._loss_weights[steps, None]
        # what weighs nothing adds nothing, not even where its cross-entropy is infinite
        return np.where(weights == 0, np.zeros_like(entropies), weights * entropies)

    def _losses(self, stacked: NamedArrays) -> Array:
        # the last axis is contiguous: NumPy sums it pairwise, with an error that hardly grows with T
        return np.asarray(self._step_losses(stacked).sum(axis=1))

    def _loss(self, parameters: NamedArrays) -> Scalar:
        loss: Scalar = self._losses(_lead(parameters))[0]
        return loss

    def _complex_step(self, parameters: NamedArrays, tangents: NamedArrays) -> float:
        """The directional derivative, Im f(p + i h v) / h, exact but for rounding (Squire & Trapp 1998)."""
        h = 1e-20
        kind = np.result_type(self._problem.dtype, np.complex64)
        moved = {n: np.asarray(p, kind) + np.asarray(1j * h * tangents[n], kind) for n, p in parameters.items()}
        return float(np.imag(self._loss(moved))) / h

    def _loss_and_gradients(self, parameters: NamedArrays) -> tuple[Scalar, Gradients]:
        gradients = self._dense_gradients(parameters) if self._problem.feed_forward else self._gradients(parameters)
        zeros = {name: np.zeros_like(p) for name, p in parameters.items()}
        return self._loss(parameters), {name: gradients.get(name, zero) for name, zero in zeros.items()}

    def _dense_gradients(self, parameters: NamedArrays) -> dict[str, Array]:
        blocks = cells.dense(_lead(parameters), self._steps.inputs, self._spec.activation)
        outputs = np.concatenate([block[:, 0] for _, block in blocks])
        adjoints = jacobian_product(outputs, self._cotangents(outputs), self._spec.activation)
        flat = np.ascontiguousarray(adjoints.transpose(1, 0, 2)).reshape(self._spec.n_classes, -1)
        inputs = self._steps.inputs.reshape(-1, self._spec.n_features)
        return {"W": (flat @ inputs).T, "b": flat.sum(axis=1)}

    def _gradients(self, parameters: NamedArrays) -> dict[str, Array]:
        sides = [False, True] if self._problem.both_ways else [self._problem.side == "reverse"]
        passes = [_Stack(self._problem, parameters, self._steps, self._start, reverse=r) for r in sides]
        outputs = np.sum([stack.outputs() for stack in passes], axis=0)
        cotangents = self._cotangents(outputs if self._offset is None else outputs + self._offset)
        gradients: dict[str, Array] = {}
        nothing = np.zeros((self._spec.n_state, self._problem.n_sequences), self._problem.dtype)
        for stack in passes:
            stack.back(cotangents, gradients, nothing)
        return gradients

    def _cotangents(self, outputs: Array) -> Array:
        probabilities = self._spec.gives_probabilities
        gradient = cells.cross_entropy_gradient(outputs, self._labels, probabilities=probabilities)
        weights = self._loss_weights[:, None]
        # what weighs nothing has no gradient, not even where its cross-entropy is infinite
        return np.where(weights == 0, np.zeros_like(gradient), weights * gradient)


class _Stack:
    """The layers of one direction, forward and backward."""

    def __init__(
        self, problem: Problem, parameters: NamedArrays, steps: cells.Steps, start: Start, *, reverse: bool
    ) -> None:
        spec = problem.spec
        self._spec, self._parameters, self._live, self._reverse = spec, parameters, start.live, reverse
        #: Whether its own time runs against that of the data.
        self._against = reverse and problem.both_ways
        steps = _turned(steps) if self._against else steps
        states = _initial_states(spec, start, _lead(parameters), reverse=reverse)
        below, self._passes = steps.inputs.swapaxes(1, 2), []
        for index, layer in enumerate(spec.layers(reverse=reverse)):
            state = tuple(c[0] for c in states[index])
            self._passes.append(LayerPass(spec, layer, index, parameters, steps, below, state))
            below = self._passes[-1].outputs

    def _top(self) -> Array:
        """The top layer's states, (T, H, N), in the order of the data."""
        states = self._passes[-1].outputs
        return states[::-1] if self._against else states

    def outputs(self) -> Array:
        """What it adds to the outputs, (T, C, N)."""
        return _read(self._spec, _lead(self._parameters), self._top()[:, None], reverse=self._reverse)[:, 0]

    def back(self, cotangents: Array, gradients: dict[str, Array], pull: Array) -> Array:
        """Fill in the gradients, from d loss / d outputs (T, C, N) and a pull (S, N) at the last state.

        Returns:
            d loss / d the first state, (S, N).
        """
        spec, parameters = self._spec, self._parameters
        if spec.n_hidden is not None:
            rows = _rows(spec, reverse=self._reverse)
            flat = np.ascontiguousarray(cotangents.transpose(1, 0, 2)).reshape(spec.n_classes, -1)
            top = np.ascontiguousarray(self._top().transpose(1, 0, 2)).reshape(spec.width, -1)
            gradients.setdefault("V", np.zeros_like(parameters["V"]))[rows] = top @ flat.T
            if not self._reverse:
                gradients["c"] = flat.sum(axis=1)
            cotangents = parameters["V"][rows] @ cotangents
        if self._against:
            cotangents = cotangents[::-1]
        names, n = spec.initial_states(reverse=self._reverse), len(spec.components)
        pulls = np.split(pull, spec.n_layers * n)
        firsts: list[Array] = []
        for index in reversed(range(spec.n_layers)):
            own = slice(index * n, (index + 1) * n)
            found, cotangents, first = self._passes[index].back(cotangents, tuple(pulls[own]))
            gradients |= found
            firsts = [*first, *firsts]
            for name, adjoint in zip(names[own], first, strict=False):  # none if not learned
                gradients[name] = np.where(self._live, adjoint, 0).sum(axis=1)
        return np.concatenate(firsts)


def _initial_states(spec: RecurrentSpec, start: Start, stacked: NamedArrays, *, reverse: bool) -> list[State]:
    """By layer and component, (K, H, N)."""
    n_copies, n = len(next(iter(stacked.values()))), len(spec.components)
    shape = n_copies, spec.width, len(start.state)
    given = [np.broadcast_to(c, shape) for c in np.split(start.state.T, spec.n_layers * n)]
    if (names := spec.initial_states(reverse=reverse)) and start.live.any():
        pairs = zip(names, given, strict=True)
        given = [np.where(start.live, stacked[name][:, :, None], c) for name, c in pairs]
    return by_layer(spec, given)


def _read(spec: RecurrentSpec, stacked: NamedArrays, states: Array, *, reverse: bool) -> Array:
    """The logits (B, K, C, N) of the top layer's states (B, K, H, N); of the reverse direction without the bias."""
    if spec.n_hidden is None:
        return states
    readout = stacked["V"][:, _rows(spec, reverse=reverse)].swapaxes(1, 2) @ states
    return np.asarray(readout if reverse else readout + stacked["c"][:, :, None])


def _rows(spec: RecurrentSpec, *, reverse: bool) -> slice:
    """A direction's rows of V."""
    return slice(spec.width, None) if reverse else slice(spec.width)


def _turned(steps: cells.Steps) -> cells.Steps:
    return steps.part(slice(None, None, -1))


def _lead(parameters: NamedArrays) -> NamedArrays:
    return {name: np.asarray(p)[None] for name, p in parameters.items()}
