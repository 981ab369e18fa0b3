"""Every truncation of every cell on every backend: against the naive definition by pairs, and its frozen objective."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from gradaudit.direction import Point, random_direction
from gradaudit.errors import OptionError
from gradaudit.recurrent import (
    RecurrentSpec,
    SequenceData,
    chunks,
    none,
    random_sequences,
    randomised,
    tail,
    tbptt,
    window,
)
from tests.backends.pairs import gradient_of, pair_derivatives
from tests.backends.test_networks import assert_close

T, N = 7, 3
CELLS = {
    "elman": {"cell": "elman", "activation": "tanh"},
    "softmax": {"cell": "elman"},
    "relu": {"cell": "elman", "activation": "relu", "n_hidden": 4},
    "gru": {"cell": "gru", "n_hidden": 4},
    "gru_before": {"cell": "gru_before", "n_hidden": 4},
    "lstm": {"cell": "lstm"},
    "peepholes": {"cell": "lstm", "n_hidden": 4, "peepholes": True},
    "stacked": {"cell": "lstm", "n_hidden": 2, "n_layers": 2},
    "stacked gru": {"cell": "gru", "n_layers": 3},
    "bidirectional": {"cell": "lstm", "n_hidden": 3, "bidirectional": True},
    "bidirectional gru": {"cell": "gru_before", "n_hidden": 3, "bidirectional": True},
}
TRUNCATIONS = [
    none(),
    *(make(k) for make in (tail, window, chunks) for k in range(1, T + 1)),
    *(tbptt(k1, k) for k in range(1, T + 1) for k1 in range(1, k + 1)),
    randomised(0.4, 1),
]
#: Of how many truncations of a case a backend computes one; of the others, which compile a second for each, a sample.
EVERY = {"numpy": 1, "torch": 3}
FEW = [none(), tail(3), window(3), chunks(4), tbptt(2, 3), randomised(0.4, 1)]


def case(cell, outputs="all", *, masked=False, learned=False, n_steps=T):
    """A network with everything that may go with its cell: its spec, weights and data."""
    options = CELLS[cell]
    spec = RecurrentSpec(n_features=2, n_classes=3, outputs=outputs, learn_initial_state=learned, **options)
    rng = np.random.default_rng(len(cell))
    weights = {name: 0.7 * rng.standard_normal(shape) for name, shape in spec.shapes().items()}
    data = random_sequences(spec, n_sequences=N, n_steps=n_steps, seed=1, dtype="float64")
    mask, features = None, data.features
    if masked:
        mask = np.arange(n_steps) < np.array([n_steps, n_steps - 2, n_steps // 2])[:, None]
        features = np.where(mask[:, :, None], features, np.nan)
    state = None if learned or spec.bidirectional else 0.5 * rng.standard_normal((N, spec.n_state))
    return spec, weights, SequenceData(features=features, labels=data.labels, mask=mask, state=state)


def chosen(backend, index, cell):
    if (every := EVERY.get(backend.name)) is not None:
        return TRUNCATIONS[index % every :: every]
    index += len(cell)
    return [FEW[index % len(FEW)]] if index % 4 == 1 else []


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_is_the_sum_over_its_pairs(backend, cell):
    for index, (outputs, masked, learned) in enumerate(product(("all", "last"), (False, True), (False, True))):
        spec, weights, data = case(cell, outputs, masked=masked, learned=learned)
        loss, found, readout = pair_derivatives(spec, weights, data)
        for truncation in chosen(backend, index, cell):
            model = backend.recurrent_model(spec, weights, data, truncation)
            value, gradients = model.value_and_grad(weights)
            assert value == pytest.approx(loss, rel=1e-12), truncation
            assert_close(gradients, gradient_of(truncation, found, readout, N), 1e-10)


@pytest.mark.parametrize(
    ("cell", "truncation"),
    [
        *(("softmax", truncation) for truncation in FEW[1:]),
        ("gru", window(3)),
        ("stacked", chunks(4)),
        ("bidirectional", tbptt(2, 3)),
    ],
    ids=str,
)
def test_the_frozen_objective_has_the_truncated_gradient(backend, cell, truncation):
    spec, weights, data = case(cell, masked=cell == "stacked", learned=True)
    model = backend.recurrent_model(spec, weights, data, truncation)
    frozen = model.frozen()
    loss, gradients = model.value_and_grad(weights)
    frozen_loss, frozen_gradients = frozen.value_and_grad(weights)
    assert frozen_loss == pytest.approx(loss, rel=1e-14)
    assert_close(frozen_gradients, gradients, 1e-12)
    assert frozen.terms(weights).sum() == pytest.approx(loss, rel=1e-12)
    # and it is the ordinary derivative of that objective: sixth-order central differences, and forward mode
    direction = random_direction("all", dict.fromkeys(weights, 1.0), 1)
    h = 2e-3
    values = dict(zip(range(-3, 4), frozen.along([Point(direction, i * h) for i in range(-3, 4)]), strict=True))
    slope = sum(c * (values[i] - values[-i]) for i, c in ((1, 45), (2, -9), (3, 1))) / (60 * h)
    assert slope == pytest.approx(direction.dot(gradients), rel=1e-8)
    tangents = {name: direction.block(name, w.shape) for name, w in weights.items()}
    for one in (model, frozen):
        assert one.jvp(weights, tangents) == pytest.approx(direction.dot(gradients), rel=1e-10)


def test_no_truncation_changes_a_bit_of_the_loss(backend):
    spec, weights, data = case("gru", n_steps=9)
    single = {name: w.astype("float32") for name, w in weights.items()}
    losses = {backend.recurrent_model(spec, single, data, t).value_and_grad(single)[0] for t in FEW}
    assert len(losses) == 1


def test_many_segments_go_in_slabs(backend, monkeypatch):
    spec, weights, data = case("softmax", learned=True)
    whole = {t: backend.recurrent_model(spec, weights, data, t) for t in (window(2), tbptt(2, 3))}
    expected = {t: (model.value_and_grad(weights)[1], model.frozen().loss(weights)) for t, model in whole.items()}
    monkeypatch.setattr("gradaudit.recurrent.segments._MOST_NUMBERS", 30)
    for truncation, (gradients, loss) in expected.items():
        model = backend.recurrent_model(spec, weights, data, truncation)
        assert_close(model.value_and_grad(weights)[1], gradients, 1e-13)
        assert model.frozen().loss(weights) == pytest.approx(loss, rel=1e-14)


def test_an_activation_without_bound_is_cut_without_nan(backend):
    """Behind the last input of a short chunk a state would overflow, and 0 * inf is NaN."""
    spec = RecurrentSpec(n_features=1, n_classes=2, activation="identity")
    weights = {"W": np.ones((1, 2)), "R": 1e70 * np.eye(2), "b": np.zeros(2)}
    features = np.zeros((1, 5, 1))
    features[0, 3] = 1e100
    data = SequenceData(features=features, labels=np.zeros((1, 5), int))
    for truncation in (chunks(4), tbptt(2, 3), window(2)):
        _, gradients = backend.recurrent_model(spec, weights, data, truncation).value_and_grad(weights)
        assert all(np.isfinite(g).all() for g in gradients.values()), truncation


def test_the_state_is_carried_from_call_to_call(backend):
    """Two calls, the second from the state that the first left, are one with chunks of that length."""
    spec, weights, data = case("stacked", n_steps=8)
    _, whole = backend.recurrent_model(spec, weights, data, chunks(4)).value_and_grad(weights)
    first = SequenceData(features=data.features[:, :4], labels=data.labels[:, :4], state=data.state)
    (left,) = backend.recurrent_model(spec, weights, first).states_after(np.array([4]))
    second = SequenceData(features=data.features[:, 4:], labels=data.labels[:, 4:], state=left)
    parts = [backend.recurrent_model(spec, weights, part).value_and_grad(weights)[1] for part in (first, second)]
    assert_close({name: (parts[0][name] + parts[1][name]) / 2 for name in whole}, whole, 1e-12)


@pytest.mark.parametrize(("cell", "n_steps"), [("softmax", 4), ("stacked", 3), ("gru_before", 7), ("peepholes", 1)])
def test_checkpoints_change_nothing_but_memory(backend, cell, n_steps):
    compiles_each = backend.name == "pytensor"  # a program for each span, of a second and more
    for learned in (True,) if compiles_each else (False, True):
        spec, weights, data = case(cell, masked=True, learned=learned)
        whole = backend.recurrent_model(spec, weights, data)
        loss, gradients = whole.value_and_grad(weights)
        few = whole.checkpointed(max(n_steps, 4) if compiles_each else n_steps)
        few_loss, few_gradients = few.value_and_grad(weights)
        assert few_loss == pytest.approx(loss, rel=1e-14)
        assert_close(few_gradients, gradients, 1e-13)
        assert few.loss(weights) == whole.loss(weights)


def test_checkpoints_need_a_network_that_runs_one_way(backend):
    spec, weights, data = case("bidirectional")
    with pytest.raises(OptionError, match="checkpoints every 3 steps of a network that runs both ways"):
        backend.recurrent_model(spec, weights, data).checkpointed(3)
    with pytest.raises(OptionError, match="checkpoints every 0 steps"):
        backend.recurrent_model(*case("gru")).checkpointed(0)
