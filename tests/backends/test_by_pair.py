"""How far each loss reaches back on every backend: against the naive definition, and with a wrong backward pass."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends.network import NetworkModel
from gradaudit.errors import ModelContractError, OptionError
from gradaudit.recurrent import (
    Problem,
    RecurrentSpec,
    Truncation,
    chunks,
    none,
    random_sequences,
    randomised,
    tail,
    tbptt,
    window,
)
from tests.backends.pairs import STEP, Side, entropies, one_step
from tests.backends.test_truncations import CELLS, FEW, TRUNCATIONS, N, T, case

#: PyTensor compiles every step anew.
SHORT = {"pytensor": 3}


def owed(spec, weights, data, directions):
    """(T, T): the derivative of the loss at step s by the state after step u along its direction, by complex steps."""
    side = Side(spec, weights, data, reverse=False)
    n_steps, n_sequences = len(side.x), len(data.labels)
    mask = side.mask if spec.outputs == "all" else np.arange(n_steps)[:, None] == np.full(n_sequences, n_steps - 1)
    loss_weights = mask / mask.sum()
    found = np.zeros((n_steps, n_steps))
    for u in range(1, n_steps + 1):
        parts = iter(np.split(directions[u - 1], directions.shape[2] // spec.width, axis=1))
        states = [tuple(c + 1j * STEP * next(parts) for c in layer) for layer in side.states[u]]
        for s in range(u, n_steps + 1):
            if s > u:
                states = one_step(spec, side.w, states, side.x[s - 1], side.mask[s - 1], side.names)
            outputs = side.logits(states) + weights.get("c", 0.0)
            slopes = np.imag(entropies(spec, outputs, data.labels[:, s - 1])) / STEP * loss_weights[s - 1]
            found[s - 1, u - 1] = np.where(loss_weights[s - 1] == 0, 0, slopes).sum()
    return found


def declared(truncation, n_steps):
    steps = range(1, n_steps + 1)
    return np.array([[truncation.keeps(s, u, n_steps) for u in steps] for s in steps])


def chosen(backend, cell):
    if backend.name in ("numpy", "torch"):
        return TRUNCATIONS[:: 1 if backend.name == "numpy" else 4]
    return FEW[:5] if cell == "softmax" and backend.name != "pytensor" else [tbptt(2, 3)]


@pytest.mark.parametrize("cell", [cell for cell in CELLS if not cell.startswith("bidirectional")])
def test_what_is_passed_back_is_owed_by_the_kept_pairs_and_by_no_other(backend, cell):
    if backend.name == "pytensor" and cell not in ("softmax", "stacked"):
        return
    options = list(product(("all", "last"), (False, True), (False, True)))
    n_steps = SHORT.get(backend.name, T)
    for outputs, masked, learned in options if backend.name == "numpy" else options[1::4]:
        spec, weights, data = case(cell, outputs, masked=masked and n_steps == T, learned=learned, n_steps=n_steps)
        moves = np.random.default_rng(5).standard_normal((n_steps, N, spec.n_state))
        full, steps = owed(spec, weights, data, moves), np.arange(1, n_steps + 1)
        for truncation in chosen(backend, cell):
            if truncation.kind == "randomised":
                continue
            model = backend.recurrent_model(spec, weights, data, truncation)
            found, size = model.passed(steps, moves)
            kept = declared(truncation, n_steps)
            assert (found[~kept] == 0).all(), truncation
            np.testing.assert_allclose(found, np.where(kept, full, 0), rtol=0, atol=1e-10 * np.abs(full).max())
            assert ((found != 0) == kept & (full != 0)).all(), truncation
            assert (np.abs(found) <= size * np.sqrt(N * spec.n_state) * (1 + 1e-12)).all()


@pytest.mark.parametrize("truncation", [*FEW, tail(1)], ids=str)
def test_the_table_agrees_given_its_truncation(backend, truncation):
    if backend.name == "pytensor" and truncation not in (tail(1), window(3)):
        return
    n_steps = SHORT.get(backend.name, T)
    spec, weights, data = case("gru", learned=True, n_steps=n_steps)
    view = gradaudit.by_pair(backend.recurrent_model(spec, weights, data, truncation))
    assert view.verdict is Verdict.AGREE
    assert (view.steps == np.arange(1, n_steps + 1)).all()
    assert (view.kept == declared(truncation, n_steps)).all()
    assert view.evaluations == 6 * n_steps + 1
    lower = np.tri(n_steps, dtype=bool)
    assert (view.numeric[lower] != 0).all()
    assert (view.numeric[~lower] == 0).all()
    assert (view.bound[view.kept] <= 1e-4 * np.abs(view.numeric).max()).all()
    if truncation.kind != "randomised":
        assert ((view.analytic == 0) == ~view.kept).all()
        np.testing.assert_allclose(view.analytic[view.kept], view.numeric[view.kept], atol=view.bound.max())
    assert str(view).splitlines()[0].startswith(f"AGREE given {truncation}" if truncation.cuts(n_steps) else "AGREE  ")


def test_what_was_drawn_weighs_the_pairs():
    spec, weights, data = case("lstm")
    truncation = randomised(0.4, 1)
    view = gradaudit.by_pair(gradaudit_numpy().recurrent_model(spec, weights, data, truncation))
    crossing = truncation.gates(T, N).state
    cut = np.array(
        [[s >= u and (crossing[u:s] == 0).any(axis=0).all() for u in range(1, T + 1)] for s in range(1, T + 1)]
    )
    assert cut.any()
    assert ((view.analytic == 0) == (cut | ~np.tri(T, dtype=bool))).all()
    assert view.verdict is Verdict.AGREE


def gradaudit_numpy():
    from gradaudit.backends import registry

    return registry.get("numpy")


class Wrong:
    """A network whose backward pass from one state to the one before, or from a loss to its state, is 1 % off."""

    def __init__(self, network, where):
        self.network, self.where = network, where

    def __getattr__(self, name):
        return getattr(self.network, name)

    def pulled(self, parameters, state, pull):
        loss, gradients, before = self.network.pulled(parameters, state, pull)
        here = pull.any() if self.where == "states" else not pull.any()
        return loss, gradients, before * 1.01 if here else before


@pytest.mark.parametrize("where", ["states", "losses"])
def test_a_wrong_backward_pass_disagrees_where_it_is_wrong(backend, where):
    n_steps = SHORT.get(backend.name, T)
    spec, weights, data = case("softmax", n_steps=n_steps)
    problem = Problem(spec=spec, weights=weights, data=data, truncation=window(2))
    view = gradaudit.by_pair(NetworkModel(problem, lambda problem: Wrong(backend.network(problem), where)))
    between = view.steps[:, None] > view.steps
    assert (view.wrong == (view.kept & between if where == "states" else view.kept)).all()
    assert view.verdict is Verdict.DISAGREE
    assert "!" in str(view)


@pytest.mark.parametrize("other", [1, 3])
def test_another_truncation_than_declared_disagrees_in_the_pairs_that_differ(monkeypatch, other):
    spec, weights, data = case("gru")
    model = gradaudit_numpy().recurrent_model(spec, weights, data, window(2))
    segments = Truncation.segments
    monkeypatch.setattr(Truncation, "segments", lambda self, n_steps: segments(window(other), n_steps))
    view = gradaudit.by_pair(model)
    assert (view.wrong == (declared(window(2), T) != declared(window(other), T))).all()
    assert view.verdict is Verdict.DISAGREE


def network(scale, *, activation="tanh", n_steps=60, truncation=none(), seed=0, width=8, dtype="float64"):
    spec = RecurrentSpec(n_features=2, n_classes=3, n_hidden=width, activation=activation)
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal(shape) for name, shape in spec.shapes().items()}
    weights["R"] *= scale / np.sqrt(width)
    data = random_sequences(spec, n_sequences=2, n_steps=n_steps, seed=seed, dtype="float64")
    weights = {name: w.astype(dtype) for name, w in weights.items()}
    return gradaudit_numpy().recurrent_model(spec, weights, data, truncation)


def by_age(values):
    n = len(values)
    return np.array([np.sqrt(np.mean(np.square(np.diagonal(values, -age)))) for age in range(n)])


def test_a_vanishing_gradient_is_a_slope_and_no_cut():
    view = gradaudit.by_pair(network(0.3))
    assert view.verdict is Verdict.AGREE
    sizes = by_age(view.analytic)
    assert (sizes[:12] > 0).all()
    assert (sizes[4:12] < sizes[:8] / 10).all()
    np.testing.assert_allclose(by_age(view.numeric)[:5], sizes[:5], rtol=1e-6)
    # a window looks the same as far as it goes, and is a band
    band = gradaudit.by_pair(network(0.3, truncation=window(5)))
    assert (by_age(band.analytic)[5:] == 0).all()
    np.testing.assert_allclose(by_age(band.analytic)[:5], sizes[:5], rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_right_networks_that_are_hard_are_not_wrong(seed):
    for view in (
        gradaudit.by_pair(network(6.0, seed=seed, width=32)),  # chaotic
        gradaudit.by_pair(network(1.0, activation="relu", seed=seed)),  # kinks
        gradaudit.by_pair(network(3.0, activation="relu", seed=seed)),  # states grow without bound
        gradaudit.by_pair(network(1.0, dtype="float32", seed=seed, truncation=chunks(9))),
    ):
        assert not view.wrong.any()


def test_chaos_is_not_resolved_where_the_moves_have_grown():
    view = gradaudit.by_pair(network(6.0, width=32))
    assert view.verdict is Verdict.INCONCLUSIVE
    ages = view.steps[:, None] - view.steps
    assert not view.unresolved[ages <= 4].any()
    assert view.unresolved[-1, 0]
    assert "?" in str(view)


def test_some_steps_are_the_same_table():
    model = network(0.9, truncation=tbptt(3, 7), n_steps=30)
    steps = [5, 6, 9, 12, 30]
    whole, some = gradaudit.by_pair(model), gradaudit.by_pair(model, steps=steps)
    assert some.evaluations == 6 * 5 + 1
    at = np.ix_(some.steps - 1, some.steps - 1)
    assert (some.kept == whole.kept[at]).all()
    assert ((some.analytic == 0) == ~some.kept).all()
    assert some.verdict is Verdict.AGREE
    moves = np.random.default_rng(0).standard_normal((30, 2, 8))
    every = np.arange(1, 31)
    np.testing.assert_allclose(
        model.passed(some.steps, moves[some.steps - 1])[0], model.passed(every, moves)[0][at], rtol=1e-12
    )


def test_long_sequences_are_looked_at_in_part_at_the_cost_of_that_part():
    counted = []

    class Counted(Wrong):
        def pulled(self, parameters, state, pull):
            counted.append(("pulled", len(state)))
            return self.network.pulled(parameters, state, pull)

        def step_losses(self, parameters):
            losses = self.network.step_losses(parameters)
            counted.append(("moved", losses.shape[1]))
            return losses

    spec, weights, data = case("softmax", n_steps=400)
    for truncation, calls, sequences in ((none(), 20, 20), (window(5), 5, 20), (chunks(4), 4, 20)):
        problem = Problem(spec=spec, weights=weights, data=data, truncation=truncation)
        model = NetworkModel(problem, lambda problem: Counted(gradaudit_numpy().network(problem), ""))
        counted.clear()
        view = gradaudit.by_pair(model, steps=range(381, 401))
        back = [n for what, n in counted if what == "pulled"]
        # one call for the losses themselves, then a step at a time to the first state
        assert (len(back), max(back)) == (calls, sequences * N), truncation
        assert sum(n for what, n in counted if what == "moved") == view.evaluations * N == (6 * 20 + 1) * N
        assert view.verdict is Verdict.AGREE
    assert f"of 400 steps, {6 * 20 + 1} evaluations" in str(view)


def test_many_moved_runs_go_in_batches(monkeypatch):
    model = network(0.9, n_steps=11)
    whole = gradaudit.by_pair(model)
    monkeypatch.setattr("gradaudit.backends.reach._MOST_NUMBERS", 5_000)
    parts = gradaudit.by_pair(model)
    np.testing.assert_allclose(parts.numeric, whole.numeric, rtol=0, atol=1e-9 * np.abs(whole.numeric).max())


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "there are no steps"),
        ([0, 3], "the steps run from 0 to 3"),
        ([3, 61], "the steps run from 3 to 61 (in by_pair())\n\nHint: some of 1 to 60"),
    ],
)
def test_refused_steps(steps, message):
    with pytest.raises(OptionError) as error:
        gradaudit.by_pair(network(1.0), steps=steps)
    assert message in str(error.value)


def test_too_many_steps_are_refused():
    with pytest.raises(OptionError, match="a table of 300 steps has 90,000 pairs") as error:
        gradaudit.by_pair(network(1.0, n_steps=300))
    assert "steps=range(45, 301), or every 2th" in str(error.value)


def test_models_without_such_states_are_refused(backend):
    spec, weights, data = case("bidirectional")
    with pytest.raises(OptionError, match="runs both ways, or has no state"):
        gradaudit.by_pair(backend.recurrent_model(spec, weights, data, none()))
    spec, weights, data = case("softmax")
    with pytest.raises(OptionError, match="runs both ways, or has no state"):
        gradaudit.by_pair(backend.dense_model(spec, weights, data))
    with pytest.raises(ModelContractError, match="the states of a object are not known"):
        gradaudit.by_pair(object())


@pytest.mark.parametrize("truncation", [none(), tail(4), window(3), chunks(4), tbptt(2, 5)], ids=str)
def test_the_picture_is_that_of_the_pairs(truncation):
    view = gradaudit.by_pair(network(0.9, truncation=truncation, n_steps=12))
    rows = [line[10:] for line in view.picture().splitlines()]
    expected = [[truncation.keeps(s, u, 12) for u in range(1, s + 1)] for s in range(1, 13)]
    assert [[sign != "." for sign in row] for row in rows] == expected
    assert str(view).endswith(view.picture())
    assert all(len(line) <= 100 for line in str(view).splitlines())


def test_one_of_some_is_drawn_of_many_steps_and_the_last():
    view = gradaudit.by_pair(network(0.5, truncation=window(30), n_steps=90))
    rows = view.picture().splitlines()
    assert [int(row.split()[0]) for row in rows] == list(range(3, 91, 3))
    assert rows[-1].endswith("." * 10 + rows[-1][-10:])
    assert ", one of 3." in str(view)


def test_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    gradaudit.by_pair(network(0.9, truncation=chunks(7), n_steps=20)).plot(tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").stat().st_size > 1000
