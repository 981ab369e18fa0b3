"""The main job on every backend: the seed case is reproduced and explained, and nothing of the user's is changed."""

from __future__ import annotations

import random

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.recurrent import Truncation, none, tail
from gradaudit.testing.scenarios import seed_case


def norm_ratio(report, name):
    return report[name].analytic_size / report[name].numeric_size


@pytest.mark.parametrize(("k", "n_steps", "factor"), [(1, 10_000, 5), (10, 2_000, 3), (100, 2_000, 2)])
def test_the_truncated_net_disagrees_by_its_fingerprint(backend, k, n_steps, factor):
    report = gradaudit.audit(seed_case(backend.name, tail(k), n_steps=n_steps).recurrent)
    assert report.verdict is Verdict.DISAGREE
    assert {p.verdict for p in report.parameters} == {Verdict.DISAGREE}
    (finding,) = report.findings
    assert (finding.code, finding.confidence) == ("GA102", "proven")
    expected = k / n_steps
    assert expected / factor <= norm_ratio(report, "W") <= expected * factor
    assert finding.numbers["bias"] > 0.9
    assert report.source == "a float64 twin"


def test_the_other_nets_agree(backend):
    case = seed_case(backend.name, tail(1))
    reports = {
        name: gradaudit.audit(model, name=name, entries=True)
        for name, model in (("dense", case.dense), ("lifted", case.lifted))
    }
    for report in reports.values():
        assert report.verdict is Verdict.AGREE
        assert report.findings == ()
        assert max(p.resolution for p in report.parameters) < 1e-3
    assert reports["dense"].loss == pytest.approx(reports["lifted"].loss, rel=1e-6)
    # the finite differences of both nets agree as well
    for name in ("W", "b"):
        np.testing.assert_allclose(reports["dense"][name].numeric, reports["lifted"][name].numeric, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_accepted_truncation_agrees(backend, dtype):
    case = seed_case(backend.name, tail(3), n_sequences=4, n_steps=200, dtype=dtype)
    report = gradaudit.audit(case.recurrent, truncation=tail(3))
    assert (report.verdict, report.judged) == (Verdict.AGREE, "frozen")


def test_float32_without_a_twin(backend):
    case = seed_case(backend.name, tail(2), n_sequences=4, n_steps=200)

    class Native:
        """The model as it is, without its float64 twin."""

        def __init__(self, model):
            self.parameters, self.loss, self.value_and_grad = model.parameters, model.loss, model.value_and_grad
            self.point_bytes, self.along = model.point_bytes, model.along

    report = gradaudit.audit(Native(case.lifted))
    assert report.source == "the float32 loss itself"
    assert report.verdict is not Verdict.DISAGREE
    assert report["W"].verdict is Verdict.AGREE
    assert gradaudit.audit(Native(case.recurrent)).verdict is Verdict.DISAGREE


def test_the_probes_are_the_same_everywhere(backend):
    mine, reference = (
        gradaudit.audit(seed_case(name, tail(1), n_sequences=4, n_steps=50, dtype="float64").recurrent)
        for name in (backend.name, "numpy")
    )
    assert mine.evaluations == reference.evaluations
    for name in ("W", "R", "b"):
        np.testing.assert_allclose(mine[name].numeric, reference[name].numeric, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(mine[name].analytic, reference[name].analytic, rtol=1e-10)


class Failing:
    """A model whose gradient raises, to see what is left behind."""

    def __init__(self, model, error):
        self.parameters, self.loss, self.preserved = model.parameters, model.loss, model.preserved
        self.error = error

    def value_and_grad(self, parameters):
        random.random()
        np.random.random()
        raise self.error


@pytest.mark.parametrize("error", [None, RuntimeError("mine"), KeyboardInterrupt()], ids=["none", "error", "ctrl-c"])
def test_random_generators_are_as_before(backend, error):
    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].tolist(), random.getstate()
    model = seed_case(backend.name, tail(1), n_sequences=2, n_steps=9).recurrent
    if error is None:
        gradaudit.audit(model)
    else:
        with pytest.raises(type(error)):
            gradaudit.audit(Failing(model, error))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


def test_all_backends_in_one_table(backend):
    models = {
        name: seed_case(name, Truncation.parse("tail:5"), n_sequences=3, n_steps=100, dtype="float64").recurrent
        for name in ("numpy", backend.name)
    }
    report = gradaudit.audit_all({f"{i}: {name}": model for i, (name, model) in enumerate(models.items())})
    assert report.verdict is Verdict.DISAGREE
    for port in report.ports:
        assert port.loss_difference <= 1e-10
        assert port.gradient_difference <= 1e-10
    assert "gradient differs by" in str(report)


def test_k_beyond_the_sequence_is_no_truncation(backend):
    case = seed_case(backend.name, tail(50), n_sequences=3, n_steps=20, dtype="float64")
    assert gradaudit.audit(case.recurrent).verdict is Verdict.AGREE
    assert case.recurrent.truncation == tail(50)
    assert case.lifted.truncation == none()
