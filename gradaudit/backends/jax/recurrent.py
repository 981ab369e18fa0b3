"""The networks of the seed case in JAX."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradaudit.arrays import Array, NamedArrays
from gradaudit.backends.jax import cells
from gradaudit.backends.jax.model import JaxModel, Programs
from gradaudit.recurrent import Problem

__all__ = ["JaxNetwork"]

_Jitted: TypeAlias = Callable[..., jax.Array]


class _Data(NamedTuple):
    """The traced arguments: the steps that run, the state (N, H) before them, the losses (c,) held for earlier ones."""

    steps: cells.Steps
    state: jax.Array
    held_losses: jax.Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Objective:
    """The loss as a function of weights and data; a value, so that networks with equal ones share programs.

    Attributes:
        n_cut: leading steps whose use of weights and state has no derivative.
        learned: the run starts from the weights' h0 instead of the data's state.
    """

    layer: cells.Layer
    n_cut: int
    learned: bool

    def __call__(self, weights: cells.Weights, data: _Data) -> jax.Array:
        """The mean cross-entropy."""
        return cells.total(self._losses(weights, data, cells.total))[0]

    def batched(self, stacked: cells.Weights, data: _Data) -> jax.Array:
        """That of K networks, (K,)."""
        n_copies, n_classes = stacked["b"].shape
        if n_classes > cells.FEW_CLASSES:
            return jax.vmap(lambda weights: self(weights, data))(stacked)
        weights = cells.side_by_side(stacked, data.state.shape[0])
        many = data._replace(
            state=jnp.tile(data.state, (n_copies, 1)),
            held_losses=jnp.broadcast_to(data.held_losses[:, None], (*data.held_losses.shape, n_copies)),
        )
        return self(weights, many)

    def step_losses(self, weights: cells.Weights, data: _Data) -> jax.Array:
        """What each step adds to it, (T,)."""
        return self._losses(weights, data, cells.keep)

    def state_after(self, n_steps: int, weights: cells.Weights, data: _Data) -> jax.Array:
        """The state (N, H) after the first steps that run."""
        steps = data.steps.part(slice(n_steps))
        return cells.walk(self.layer, weights, self._initial_state(weights, data), steps, cells.total)[0]

    def _initial_state(self, weights: cells.Weights, data: _Data) -> jax.Array:
        return jnp.broadcast_to(weights["h0"].T, data.state.shape) if self.learned else data.state

    def _losses(self, weights: cells.Weights, data: _Data, reduce: cells.Reduce) -> jax.Array:
        state, losses = self._initial_state(weights, data), data.held_losses
        if self.n_cut:
            # stopped at its inputs, this scan has no derivative at all, so nothing is stored for it
            stopped, state, cut = lax.stop_gradient((weights, state, data.steps.part(slice(self.n_cut))))
            state, early = cells.walk(self.layer, stopped, state, cut, reduce)
            losses = jnp.concatenate([losses, early])
        _, late = cells.walk(self.layer, weights, state, data.steps.part(slice(self.n_cut, None)), reduce)
        return jnp.concatenate([losses, late])


@final
class _NetworkPrograms:
    """All programs of one objective; what needs no derivative comes from the same objective untruncated."""

    def __init__(self, objective: _Objective) -> None:
        forward = _programs(replace(objective, n_cut=0)) if objective.n_cut else None
        self.model: Programs = Programs(objective, forward=forward and forward.model, batched=objective.batched)
        self.step_losses: _Jitted = forward.step_losses if forward else jax.jit(objective.step_losses)
        self.state_after: _Jitted = forward.state_after if forward else jax.jit(objective.state_after, static_argnums=0)


@lru_cache(maxsize=64)
def _programs(objective: _Objective) -> _NetworkPrograms:
    """Compiling takes longer than running: once for equal objectives, shapes and dtypes in one process."""
    return _NetworkPrograms(objective)


@final
class JaxNetwork:
    """The network of a problem, its forward a scan, its derivatives JAX's.

    Args:
        problem: spec, weights, data and truncation; dtype float32 or float64.
    """

    def __init__(self, problem: Problem) -> None:
        held = problem.held
        self._first = problem.n_cut if held is not None else 0
        layer = cells.Layer(activation=problem.spec.activation, feed_forward=problem.feed_forward)
        learned = "h0" in problem.weights and held is None
        n_cut = problem.n_cut - self._first
        self._programs = _programs(_Objective(layer=layer, n_cut=n_cut, learned=learned))
        self.model = JaxModel(
            self._programs.model,
            problem.weights,
            arguments=(self._data(problem),),
            working_bytes=cells.working_bytes(
                problem.n_steps, problem.n_sequences, problem.spec.n_classes, problem.dtype
            ),
            n_threads=os.cpu_count() or 1,
        )

    def _data(self, problem: Problem) -> _Data:
        labels, held = problem.labels().astype(np.int32), problem.held
        steps = cells.Steps(problem.inputs(), labels, problem.loss_weights()).part(slice(self._first, None))
        if held is not None:
            return _Data(steps, held.state.astype(problem.dtype), held.step_losses.astype(problem.dtype))
        state = np.zeros((problem.n_sequences, problem.spec.n_classes), problem.dtype)
        return _Data(steps, state, np.zeros(0, problem.dtype))

    def step_losses(self, parameters: NamedArrays) -> Array:
        """What each step adds to the loss, (T,)."""
        losses: Array = self.model.evaluate(self._programs.step_losses, parameters)
        return losses

    def state_after(self, parameters: NamedArrays, n_steps: int) -> Array:
        """The hidden state (N, H) after ``n_steps`` steps."""
        n_run = max(n_steps - self._first, 0)  # the held state stands for the steps before
        state: Array = self.model.evaluate(partial(self._programs.state_after, n_run), parameters)
        return state
