"""What runs for a truncated gradient: how many steps, of how many sequences, in batches of what size."""

from __future__ import annotations

import numpy as np
import pytest

from gradaudit.recurrent import (
    Problem,
    RecurrentSpec,
    chunks,
    initial_weights,
    random_sequences,
    randomised,
    segment_problems,
    tail,
    tbptt,
    window,
)

T, N = 100, 3


def runs(truncation, **options):
    """(steps, sequences) of each batch."""
    spec = RecurrentSpec(n_features=2, n_classes=2, **options)
    data = random_sequences(spec, n_sequences=N, n_steps=T, seed=0, dtype="float64")
    problem = Problem(spec=spec, weights=initial_weights(spec, seed=0, dtype="float64"), data=data)
    problems = segment_problems(problem, truncation, np.zeros((T + 1, N, spec.n_state)))
    return [(p.n_steps, p.n_sequences) for p in problems]


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        (tail(7), [(7, N)]),
        (chunks(10), [(10, 10 * N)]),
        (chunks(30), [(10, N), (30, 3 * N)]),  # the last one is short, and never runs on behind the last input
        (window(7), [(7, 94 * N)]),  # the first seven losses are one run
        (tbptt(5, 20), [(20, 17 * N)]),
        (tbptt(30, 40), [(30, N), (40, 3 * N)]),
        (randomised(0.1), [(T, N)]),
    ],
    ids=str,
)
def test_the_steps_that_run(truncation, expected):
    assert runs(truncation) == expected


def test_a_loss_on_the_last_step_runs_once():
    for truncation in (window(7), tbptt(5, 7), tail(7)):
        assert runs(truncation, outputs="last") == [(7, N)]
    assert runs(chunks(30), outputs="last") == [(10, N)]


def test_a_readout_learns_from_losses_that_no_segment_has():
    assert runs(tail(7), n_hidden=4) == [(7, N), (1, 93 * N)]
    assert runs(window(7), n_hidden=4) == [(7, 94 * N)]


def test_a_batch_has_bounded_memory(monkeypatch):
    monkeypatch.setattr("gradaudit.recurrent.segments._MOST_NUMBERS", 4 * 7 * N * 20)
    batches = runs(window(7))
    assert batches == [(7, 19 * N)] * 5  # 95 runs of equal shape for 94: one of them has no loss
