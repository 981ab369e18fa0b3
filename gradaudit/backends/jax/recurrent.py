"""The networks in JAX."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar, as_scalar
from gradaudit.backends.jax import cells
from gradaudit.backends.jax.model import JaxModel, Programs
from gradaudit.recurrent import Problem, RecurrentSpec
from gradaudit.recurrent.cells import by_layer

__all__ = ["JaxNetwork"]

_Jitted: TypeAlias = Callable[..., jax.Array]


class _Data(NamedTuple):
    """The traced arguments: the steps, the state (S, N) before them, and which sequences (N,) start elsewhere."""

    steps: cells.Steps
    state: jax.Array
    live: jax.Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Objective:
    """The loss as a function of weights and data; a value, so that networks with equal ones share programs.

    Attributes:
        learned: some sequences start from the learned initial states.
        both_ways: two directions of time are run.
        reverse: the one direction that is run is the reverse one.
    """

    spec: RecurrentSpec
    feed_forward: bool
    learned: bool
    both_ways: bool
    reverse: bool

    def __call__(self, weights: cells.Weights, data: _Data) -> jax.Array:
        """The mean cross-entropy."""
        return self._run(weights, data, self._begun(weights, data))[0]

    def batched(self, stacked: cells.Weights, data: _Data) -> jax.Array:
        """That of K networks, (K,)."""
        spec = self.spec
        plain = spec.cell == "elman" and spec.n_layers == 1 and spec.n_hidden is None
        if not plain or spec.width > cells.FEW_UNITS:
            return jax.vmap(lambda weights: self(weights, data))(stacked)
        n_copies = stacked["b"].shape[0]
        weights = cells.side_by_side(stacked, data.live.shape[0])
        many = data._replace(state=jnp.tile(data.state, n_copies), live=jnp.tile(data.live, n_copies))
        return self._run(weights, many, self._begun(weights, many))[0]

    def step_losses(self, weights: cells.Weights, data: _Data) -> jax.Array:
        """What each step of each sequence adds to it, (T, N)."""
        return self._losses(weights, data, cells.keep, self._begun(weights, data))[1]

    def pulled(self, weights: cells.Weights, given: dict[str, jax.Array], data: _Data) -> Any:
        """The loss, its gradients, d / d the first state (S, N), see `protocols.Network`; ``given`` state and pull."""

        def run(weights: cells.Weights, state: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss, states = self._run(weights, data, self._parts(state))
            return loss, jnp.concatenate([c for state in states for c in state])

        (loss, _), back = jax.vjp(run, weights, given["state"])
        return loss, *back((jnp.ones_like(loss), given["pull"]))

    def _run(self, weights: cells.Weights, data: _Data, begun: cells.States) -> tuple[jax.Array, cells.States]:
        """The mean cross-entropy and the last states."""
        states, losses = self._losses(weights, data, cells.total, begun)
        return cells.in_pairs(losses)[0], states

    def _begun(self, weights: cells.Weights, data: _Data) -> cells.States:
        return () if self.feed_forward else self._initial_states(weights, data, reverse=self.reverse)

    def states(self, weights: cells.Weights, data: _Data) -> jax.Array:
        """(T+1, N, S)."""
        begun = self._initial_states(weights, data, reverse=self.reverse)

        def block(states: cells.States, steps: cells.Steps) -> tuple[cells.States, jax.Array]:
            states, kept = cells.outputs(self.spec, weights, states, steps, reverse=self.reverse)
            return states, jnp.concatenate([c for state in kept for c in state], axis=1)

        first = jnp.concatenate([c for state in begun for c in state])
        return jnp.concatenate([first[None], cells.walk(block, begun, data.steps)[1]]).swapaxes(1, 2)

    def _initial_states(self, weights: cells.Weights, data: _Data, *, reverse: bool) -> cells.States:
        n = len(self.spec.components)
        given = jnp.split(data.state, self.spec.n_layers * n)
        if self.learned:
            names = self.spec.initial_states(reverse=reverse)
            given = [
                jnp.where(data.live, cells.columns(weights[name], 1), c) for name, c in zip(names, given, strict=True)
            ]
        return tuple(by_layer(self.spec, given))

    def _parts(self, state: jax.Array) -> cells.States:
        """A state (S, N) by layer and component."""
        n = len(self.spec.components)
        parts = jnp.split(state, self.spec.n_layers * n)
        return tuple(by_layer(self.spec, parts))

    def _losses(
        self, weights: cells.Weights, data: _Data, reduce: cells.Reduce, begun: cells.States
    ) -> tuple[cells.States, jax.Array]:
        steps, spec = data.steps, self.spec
        if self.feed_forward:

            def dense(carry: cells.States, steps: cells.Steps) -> tuple[cells.States, jax.Array]:
                return carry, reduce(cells.entropies(spec, weights, cells.dense(spec, weights, steps), steps))

            return cells.walk(dense, begun, steps)
        if self.both_ways:
            steps = steps._replace(offset=self._behind(weights, data))

        def block(states: cells.States, steps: cells.Steps) -> tuple[cells.States, jax.Array]:
            states, kept = cells.outputs(spec, weights, states, steps, reverse=self.reverse)
            outputs = cells.read(spec, weights, kept[-1][0], reverse=self.reverse)
            outputs = outputs if steps.offset is None else outputs + steps.offset
            return states, reduce(cells.entropies(spec, weights, outputs, steps))

        return cells.walk(block, begun, steps)

    def _behind(self, weights: cells.Weights, data: _Data) -> jax.Array:
        """What the reverse direction adds to the logits, (T, C, N), in the order of time."""

        def block(states: cells.States, steps: cells.Steps) -> tuple[cells.States, jax.Array]:
            states, kept = cells.outputs(self.spec, weights, states, steps, reverse=True)
            return states, cells.read(self.spec, weights, kept[-1][0], reverse=True)

        turned = data.steps.part(slice(None, None, -1))
        return cells.walk(block, self._initial_states(weights, data, reverse=True), turned)[1][::-1]


@final
class _NetworkPrograms:
    """All programs of one objective."""

    def __init__(self, objective: _Objective) -> None:
        self.model: Programs = Programs(objective, batched=objective.batched)
        self.step_losses: _Jitted = jax.jit(objective.step_losses)
        self.states: _Jitted = jax.jit(objective.states)
        self.pulled: Callable[..., Any] = jax.jit(objective.pulled)


@lru_cache(maxsize=64)
def _programs(objective: _Objective) -> _NetworkPrograms:
    """Compiling takes longer than running: once for equal objectives, shapes and dtypes in one process."""
    return _NetworkPrograms(objective)


@final
class JaxNetwork:
    """The network of a problem, its forward a scan, its derivatives JAX's.

    Args:
        problem: spec, weights and data; dtype float32 or float64.
    """

    truncates = False

    def __init__(self, problem: Problem) -> None:
        start = problem.start_state()
        objective = _Objective(
            spec=problem.spec,
            feed_forward=problem.feed_forward,
            learned=problem.spec.learn_initial_state and bool(start.live.any()) and not problem.feed_forward,
            both_ways=problem.both_ways,
            reverse=problem.side == "reverse",
        )
        crossing, offset = problem.crossings(), problem.offsets()
        steps = cells.Steps(
            problem.inputs(),
            problem.labels().astype(np.int32),
            problem.loss_weights(),
            problem.mask(),
            None if crossing is None else crossing.weights,
            None if crossing is None else crossing.held.swapaxes(1, 2),
            None if offset is None else offset.swapaxes(1, 2),
        )
        self._programs = _programs(objective)
        self._dtype = problem.dtype
        self.model = JaxModel(
            self._programs.model,
            problem.weights,
            arguments=(_Data(steps, start.state.T, start.live),),
            working_bytes=cells.working_bytes(problem.spec, problem.n_steps, problem.n_sequences, problem.dtype),
            n_threads=os.cpu_count() or 1,
        )

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step of each sequence adds to the loss, (T, N)."""
        losses: Array = self.model.evaluate(self._programs.step_losses, parameters)
        return losses

    def states(self, parameters: NamedArrays) -> Array:
        """(T+1, N, S): the state before the first step, then after each."""
        states: Array = self.model.evaluate(self._programs.states, parameters)
        return states

    def pulled(self, parameters: NamedArrays, state: Array, pull: Array) -> tuple[Scalar, Gradients, Array]:
        """Forward and backward from a state (N, S), with a pull (N, S) at the last one; see `protocols.Network`."""
        given = {name: a.T.astype(self._dtype) for name, a in (("state", state), ("pull", pull))}
        loss, gradients, before = self.model.evaluate(self._programs.pulled, parameters, given)
        return as_scalar(loss, "pulled()"), gradients, np.ascontiguousarray(before.T)
