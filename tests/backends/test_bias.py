"""The bias of a network on every backend, against the naive definition by pairs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import gradaudit
from gradaudit.arrays import global_norm
from gradaudit.errors import OptionError
from gradaudit.recurrent import RecurrentSpec, Truncation, none, random_sequences
from tests.backends.pairs import gradient_of, pair_derivatives
from tests.backends.test_networks import assert_close
from tests.backends.test_truncations import CELLS, EVERY, N, T, case

#: On backends that compile a program for each of these, or several.
FEW = [("elman", "all", True, True), ("bidirectional gru", "last", False, False)]


def test_every_window_is_the_sum_over_its_pairs(backend):
    every = product(CELLS, ("all", "last"), (False, True), (False, True))
    few = FEW[:1] if backend.name == "pytensor" else FEW  # which takes ten seconds for one
    for cell, outputs, masked, learned in every if backend.name in EVERY else few:
        spec, weights, data = case(cell, outputs, masked=masked, learned=learned)
        _, found, readout = pair_derivatives(spec, weights, data)
        windows = list(backend.recurrent_model(spec, weights, data, none()).windows(weights))
        assert len(windows) == T
        for k, gradients in enumerate(windows, 1):
            assert_close(gradients, gradient_of(Truncation("window", k), found, readout, N), 1e-10)


def test_a_dense_layer_has_no_windows(backend):
    spec = RecurrentSpec(n_features=2, n_classes=3)
    weights = {name: np.ones(shape) for name, shape in spec.shapes(feed_forward=True).items()}
    data = random_sequences(spec, n_sequences=2, n_steps=3, seed=0, dtype="float64")
    with pytest.raises(OptionError, match="no steps that a window could reach over"):
        next(backend.dense_model(spec, weights, data).windows(weights))


def test_the_bias_is_that_of_the_kept_pairs(backend):
    spec, weights, data = case("elman")
    _, found, readout = pair_derivatives(spec, weights, data)
    full = gradient_of(none(), found, readout, N)
    model = backend.recurrent_model(spec, weights, data, none())
    # each length is a program of its own where it is compiled
    horizon = T if backend.name == "numpy" else 2
    curve = gradaudit.bias_curve(model, delta=0.01, kinds=["window"], horizon=horizon)
    assert curve.n_steps == T
    # each that is run by itself is run twice
    own = sum(p.work for p in curve["window"].points if p.seconds and p.k < T)
    assert curve.work == pytest.approx(2 + horizon + 2 * own)
    assert set(curve["window"].parameters) == {name for name in weights if name not in ("V", "c")}
    for point in curve["window"].points:
        kept = gradient_of(Truncation("window", point.k), found, readout, N)
        missing = global_norm({name: full[name] - kept[name] for name in curve["window"].parameters})
        whole = global_norm({name: full[name] for name in curve["window"].parameters})
        assert point.bias == pytest.approx(missing / whole, abs=1e-10)
    assert curve["window"].k == (T if horizon == T else None)
