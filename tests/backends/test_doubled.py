"""Long windows without their runs: against the naive definition, and where the runs are needed after all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from gradaudit.recurrent import RecurrentSpec, random_sequences, tbptt, window
from tests.backends.pairs import gradient_of, pair_derivatives
from tests.backends.test_networks import assert_close
from tests.backends.test_truncations import CELLS, N, T, case


@pytest.fixture
def runs(monkeypatch):
    """The runs of segments that were asked for."""
    from gradaudit.backends import truncated

    asked = []
    segment_problems = truncated.segment_problems

    def counted(problem, *others):
        for part in segment_problems(problem, *others):
            asked.append(part)
            yield part

    monkeypatch.setattr(truncated, "segment_problems", counted)
    return asked


@pytest.mark.parametrize("cell", CELLS)
def test_every_window_of_every_cell_is_the_sum_over_its_pairs(backend, cell, runs, monkeypatch):
    if backend.name in ("jax", "tensorflow", "pytensor") and cell not in ("stacked", "bidirectional"):
        return
    monkeypatch.setattr("gradaudit.backends.doubled._LONG", 0)
    options = list(product(("all", "last"), (False, True), (False, True)))
    for outputs, masked, learned in options if backend.name in ("numpy", "torch") else options[3:4]:
        spec, weights, data = case(cell, outputs, masked=masked, learned=learned)
        loss, found, readout = pair_derivatives(spec, weights, data)
        for k in range(1, T) if backend.name in ("numpy", "torch") else (5,):
            value, gradients = backend.recurrent_model(spec, weights, data, window(k)).value_and_grad(weights)
            assert value == pytest.approx(loss, rel=1e-12)
            assert_close(gradients, gradient_of(window(k), found, readout, N), 1e-10)
    assert not runs


def test_a_long_window_of_few_units_has_no_runs(backend, runs):
    spec = RecurrentSpec(n_features=2, n_classes=2, learn_initial_state=True)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in spec.shapes().items()}
    data = random_sequences(spec, n_sequences=3, n_steps=40, seed=0, dtype="float64")
    model = backend.recurrent_model(spec, weights, data, window(5))
    _, gradients = model.value_and_grad(weights)
    assert not runs
    # the objective that it is the derivative of is made of runs, and knows nothing of this
    _, expected = model.frozen().value_and_grad(weights)
    assert runs
    assert_close(gradients, expected, 1e-12)
    runs.clear()
    for truncation in (window(4), tbptt(2, 5)):
        backend.recurrent_model(spec, weights, data, truncation).value_and_grad(weights)
        assert runs, truncation
        runs.clear()


def test_products_beyond_all_numbers_leave_it_to_the_runs(backend, runs):
    """A unit that no loss reads, whose Jacobians' product overflows: 0 * inf is NaN, and the gradient is finite."""
    spec = RecurrentSpec(n_features=1, n_classes=2, n_hidden=2, activation="identity")
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in spec.shapes().items()}
    weights |= {"W": np.array([[0.0, 1.0]]), "b": np.zeros(2), "V": np.array([[0.0, 0.0], [1.0, 2.0]])}
    data = random_sequences(spec, n_sequences=1, n_steps=30, seed=0, dtype="float64")
    found = []
    for size in (1e20, 1e40):
        weights["R"] = np.diag([size, 0.5])
        runs.clear()
        _, gradients = backend.recurrent_model(spec, weights, data, window(24)).value_and_grad(weights)
        found.append(gradients)
        assert bool(runs) == (size == 1e40)
    assert_close(found[1], found[0], 1e-12)
