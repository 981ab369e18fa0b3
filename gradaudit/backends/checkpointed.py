"""Full back-propagation through time in bounded memory, on any backend: what lies between checkpoints runs twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradaudit.arrays import Array, Gradients, NamedArrays, Scalar
from gradaudit.backends.one_step import Build
from gradaudit.recurrent import Problem, Start, spans

__all__ = ["checkpointed"]


def checkpointed(problem: Problem, build: Build, parameters: NamedArrays, n_steps: int) -> tuple[Scalar, Gradients]:
    """The loss and its full gradient, span after span of ``n_steps`` steps, from the last to the first.

    Each span is a network of its own; what all later ones pull at its last state, d loss / d state, is handed back
    (Griewank & Walther 2000, with one level of checkpoints).
    """
    parts = spans(problem, n_steps)
    states: list[Array] = []
    for index, part in enumerate(parts):
        # the first span begins as the network does, each other one where the one before has ended
        begun = part if index == 0 else replace(part, start=Start(states[-1], np.zeros(part.n_sequences, bool)))
        walked = build(begun).states(parameters)
        # copies: a view would keep all the states of its span
        states += [walked[0].copy(), walked[-1].copy()] if index == 0 else [walked[-1].copy()]
    losses: list[Scalar] = []
    total = {name: np.zeros_like(p) for name, p in parameters.items()}
    pull = np.zeros_like(states[0])
    for part, state in zip(reversed(parts), reversed(states[:-1]), strict=True):
        loss, gradients, pull = build(part).pulled(parameters, state, pull)
        losses.append(loss)
        for name, gradient in gradients.items():
            assert gradient is not None  # a network's gradient lacks no weight, see `gradaudit.protocols.Network`
            total[name] = total[name] + gradient
    if names := problem.spec.initial_states():
        own = np.where(problem.start_state().live[:, None], pull, 0).sum(axis=0)
        total |= dict(zip(names, np.split(own.astype(problem.dtype), len(names)), strict=True))
    loss_in_all: Scalar = np.dtype(problem.dtype).type(sum(map(np.float64, losses)))
    return loss_in_all, total
