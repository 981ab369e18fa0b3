"""The bias of a network on every backend, against the naive definition by pairs."""

from __future__ import annotations

import pytest

import gradaudit
from gradaudit.arrays import global_norm
from gradaudit.recurrent import Truncation, none
from tests.backends.pairs import gradient_of, pair_derivatives
from tests.backends.test_truncations import N, case


def test_the_bias_is_that_of_the_kept_pairs(backend):
    spec, weights, data = case("elman")
    _, found, readout = pair_derivatives(spec, weights, data)
    full = gradient_of(none(), found, readout, N)
    model = backend.recurrent_model(spec, weights, data, none())
    # each length is a program of its own where it is compiled
    horizon = 7 if backend.name == "numpy" else 2
    curve = gradaudit.bias_curve(model, delta=0.01, kinds=["window"], horizon=horizon)
    assert curve.n_steps == 7
    for point in curve["window"].points:
        kept = gradient_of(Truncation("window", point.k), found, readout, N)
        missing = global_norm({name: full[name] - kept[name] for name in full})
        assert point.bias == pytest.approx(missing / global_norm(full), abs=1e-10)
    assert curve["window"].k == (7 if horizon == 7 else None)
