"""Truncation told from models of other lengths: the length is found, right gradients stay right."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit.backends import registry
from gradaudit.errors import OptionError
from gradaudit.recurrent import RecurrentSpec, SequenceData, chunks, none, random_sequences, tail, tbptt, window

T = 24


def of_length(truncation, *, recurrent=1.0, outputs="all", dtype="float64", factor=1.0):
    """A network over the first t steps; only its weights are differentiated."""
    spec = RecurrentSpec(n_features=2, n_classes=3, activation="tanh", outputs=outputs)
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(shape).astype(dtype) for n, shape in spec.shapes().items()}
    weights["R"] *= np.asarray(recurrent, dtype)
    data = random_sequences(spec, n_sequences=3, n_steps=T, seed=1, dtype=dtype)

    def over(t):
        some = SequenceData(features=data.features[:, :t], labels=data.labels[:, :t])
        model = registry.get("numpy").recurrent_model(spec, weights, some, truncation)
        return model if factor == 1 else Scaled(model, factor)

    return over


class Scaled:
    def __init__(self, model, factor):
        self._model, self._factor = model, factor

    def parameters(self):
        return self._model.parameters()

    def loss(self, parameters):
        return self._model.loss(parameters)

    def value_and_grad(self, parameters):
        loss, gradients = self._model.value_and_grad(parameters)
        return loss, {name: self._factor * g for name, g in gradients.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("outputs", ["all", "last"])
@pytest.mark.parametrize("truth", [tail(1), tail(7), window(1), window(9), chunks(8), chunks(23), tbptt(3, 7)], ids=str)
def test_the_length_is_found(truth, outputs, dtype):
    found = gradaudit.identify_by_length(of_length(truth, outputs=outputs, dtype=dtype), T)
    assert found.status == "truncated", str(found)
    assert {t.k for t in found.hypotheses} == {truth.k}
    assert truth in found.hypotheses
    assert len(set(found.hypotheses)) == len(found.hypotheses)
    assert "cannot be told apart" in str(found) or truth.k == 1


@pytest.mark.parametrize("recurrent", [1.0, 1e-3], ids=["remembers", "vanishes"])
def test_what_is_not_truncated_is_not(recurrent):
    found = gradaudit.identify_by_length(of_length(none(), recurrent=recurrent), T)
    assert (found.status, found.hypotheses) == ("not truncated", ())


def test_what_is_wrong_at_every_length_is_none_of_these():
    found = gradaudit.identify_by_length(of_length(none(), factor=2.0), T)
    assert found.status == "none of these"
    assert "one step alone is wrong" in str(found)


def test_each_length_is_asked_once():
    asked = []
    over = of_length(window(9))
    gradaudit.identify_by_length(lambda t: asked.append(t) or over(t), T)
    assert asked == [24, 1, 2, 4, 8, 16, 12, 10, 9]


def test_what_cannot_be_told_is_not_told():
    found = gradaudit.identify_by_length(of_length(window(9)), T, max_evaluations=100)
    assert found.status == "cannot tell"
    assert "max_evaluations = 100 is too few" in str(found)
    rng = np.random.default_rng(0)
    target = gradaudit.Target(lambda w: (w**2).sum() + rng.normal(), np.ones(3), gradient=lambda w: 2 * w)
    assert "does not repeat itself" in str(gradaudit.identify_by_length(lambda _: target, T))


def test_one_step_has_no_past():
    with pytest.raises(OptionError, match="1 steps"):
        gradaudit.identify_by_length(of_length(none()), 1)
