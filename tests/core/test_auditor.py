"""Whole audits of small models: verdicts, costs, determinism, state."""

from __future__ import annotations

import random

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends.numpy import NumpyModel
from gradaudit.errors import GradientMismatchError, OptionError
from tests.core.models import mlp, of, replaced, times


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(5))
def test_a_correct_gradient_agrees(dtype, seed):
    report = gradaudit.audit(mlp(dtype=dtype, seed=seed), seed=seed)
    assert report.verdict is not Verdict.DISAGREE
    assert not [f for f in report.findings if f.code != "GA701"]
    if dtype == "float64":
        assert report.verdict is Verdict.AGREE
        assert max(p.resolution for p in report.parameters) < 1e-4


@pytest.mark.parametrize("name", ["first", "bias", "second"])
@pytest.mark.parametrize("factor", [1.0001, 1.1, 0.5, -1.0, 0.0, 1e4])
def test_a_wrong_tensor_is_named(name, factor):
    report = gradaudit.audit(mlp(times(factor, name)))
    assert report.verdict is Verdict.DISAGREE
    verdicts = {p.name: p.verdict for p in report.parameters}
    assert verdicts == {n: Verdict.DISAGREE if n == name else Verdict.AGREE for n in ("first", "bias", "second")}
    assert report.parameters[0].name == name
    assert report.findings[0].parameters == (name,)


@pytest.mark.parametrize("factor", [1.1, -1.0, 0.0])
def test_a_wrong_float32_tensor_is_found_without_a_twin(factor):
    report = gradaudit.audit(mlp(times(factor, "second"), dtype="float32"))
    assert report.verdict is Verdict.DISAGREE
    assert report.source == "the float32 loss itself"


def test_one_wrong_entry_of_a_small_tensor_is_shown():
    def fault(gradients):
        wrong = gradients["second"].copy()
        wrong[2, 1] *= 1.01
        return gradients | {"second": wrong}

    result = gradaudit.audit(mlp(fault))["second"]
    assert result.verdict is Verdict.DISAGREE
    entries = np.array([v is Verdict.DISAGREE for v in result.entries.verdict]).reshape(result.shape)
    assert np.argwhere(entries).tolist() == [[2, 1]]
    error = np.abs(result.analytic - result.numeric)
    assert np.unravel_index(error.argmax(), error.shape) == (2, 1)
    assert (error <= result.bound)[~entries].all()


def test_the_scale_of_the_loss_does_not_matter():
    for scale in (1e-170, 1e-30, 1e20):  # the square of the first is 0
        parameters = {"x": np.array([0.3, 0.7])}
        for factor, expected in ((1, Verdict.AGREE), (1.01, Verdict.DISAGREE)):
            model = of(
                lambda p, scale=scale: scale * np.sin(p["x"]).sum(),
                lambda p, scale=scale, factor=factor: {"x": factor * scale * np.cos(p["x"])},
                **parameters,
            )
            assert gradaudit.audit(model).verdict is expected


@pytest.mark.parametrize(("unit", "offset"), [(1e-8, 0.0), (1e8, 0.0), (1.0, 1e6)])
def test_parameters_of_any_size_and_a_large_constant(unit, offset):
    model = of(
        lambda p: offset + np.sin(p["x"] / unit).sum(),
        lambda p: {"x": np.cos(p["x"] / unit) / unit},
        x=np.array([0.3, 0.7, 1.2]) * unit,
    )
    assert gradaudit.audit(model).verdict is Verdict.AGREE


def test_a_tensor_of_mixed_sizes_is_stepped_entry_by_entry():
    unit = np.array([1e-6, 1.0, 1e6])
    for factor, expected in ((1.0, Verdict.AGREE), (1.01, Verdict.DISAGREE)):
        model = of(
            lambda p: np.sin(p["x"] / unit).sum(),
            lambda p, factor=factor: {"x": factor * np.cos(p["x"] / unit) / unit},
            x=0.7 * unit,
        )
        assert gradaudit.audit(model).verdict is expected


def test_the_cost_is_exact():
    # baseline 3; whole model 21; along the gradient and 3 tensors: 8 each
    report = gradaudit.audit(mlp())
    assert report.evaluations == 3 + 21 + 8 * (1 + 3)
    assert report.gradients == 2
    # the 18 entries of the small tensors where they are asked for
    assert gradaudit.audit(mlp(), entries=True).evaluations == report.evaluations + 8 * (6 + 12)
    # a fresh direction of a tensor that disagrees, and its entries if it is small; none along a gradient that is wrong
    assert gradaudit.audit(mlp(times(2.0, "bias"))).evaluations == report.evaluations + 8 + 8 * 6 - 8


def test_the_count_is_what_the_model_sees():
    calls = {"loss": 0, "gradient": 0}

    def loss(p):
        calls["loss"] += 1
        return (p["x"] ** 2).sum()

    def gradient(p):
        calls["gradient"] += 1
        return {"x": 2 * p["x"]}

    report = gradaudit.audit(of(loss, gradient, x=np.ones(3)))
    # value_and_grad calls the loss once more
    assert calls == {"loss": report.evaluations + report.gradients, "gradient": report.gradients}


def test_progress_is_told():
    seen = []
    report = gradaudit.audit(mlp(), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == report.evaluations


@pytest.mark.parametrize("most", [3, 30, 60])
def test_a_budget_too_small_is_said(most):
    report = gradaudit.audit(mlp(times(2.0)), max_evaluations=most)
    assert report.evaluations <= most
    assert not report.complete
    assert report.verdict is not Verdict.AGREE
    assert f"The budget of {most} evaluations ended before the plan did." in str(report)
    finding = next(f for f in report.findings if f.code == "GA701")
    assert "the budget ended first" in finding.sentence
    assert "a larger max_evaluations" in finding.remedy


def test_the_same_seed_gives_the_same_report():
    def without_time(report):
        return report.to_json().replace(f'"seconds": {report.seconds}', "")

    one, same, other = (gradaudit.audit(mlp(times(2.0, "bias")), seed=seed) for seed in (1, 1, 2))
    assert without_time(one) == without_time(same)
    assert one["bias"].ratio != other["bias"].ratio
    assert one.verdict is other.verdict


def test_selection_by_glob():
    report = gradaudit.audit(mlp(times(2.0, "bias")), parameters="*s*")
    assert sorted(p.name for p in report.parameters) == ["bias", "first", "second"]
    report = gradaudit.audit(mlp(times(2.0, "bias")), parameters="*ir*")
    assert [p.name for p in report.parameters] == ["first"]
    assert report.verdict is Verdict.AGREE


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_empty_tensor_is_left_out(first, factor, dtype):
    empty, x = {"empty": np.zeros((0, 3), dtype)}, {"x": np.array([0.3, 0.7, -0.2], dtype)}
    model = NumpyModel(
        lambda p: np.sin(p["x"]).sum() + p["empty"].sum(),
        empty | x if first else x | empty,
        gradient=lambda p: {"x": p["x"].dtype.type(factor) * np.cos(p["x"]), "empty": np.zeros_like(p["empty"])},
        any_dtype=True,
    )
    for options in ({}, {"parameters": "x"}):
        report = gradaudit.audit(model, **options)
        assert [p.name for p in report.parameters] == ["x"]
        assert report.verdict is (Verdict.AGREE if factor == 1 else Verdict.DISAGREE)
        assert [f.code for f in report.findings] == ([] if factor == 1 else ["GA301"])
    with pytest.raises(OptionError, match="parameters='empty' matches none of x"):
        gradaudit.audit(model, parameters="empty")
    both = gradaudit.audit_all({"one": model, "other": model}, mapping={})
    assert both.ports[1].verdict is Verdict.AGREE


def test_a_none_gradient_is_missing():
    report = gradaudit.audit(mlp(replaced(bias=None)))
    assert report["bias"].missing
    assert report["bias"].verdict is Verdict.DISAGREE
    assert "missing" in str(report)


def test_an_unused_parameter_with_zero_or_no_gradient_agrees():
    for unused in (np.zeros(3), None):
        model = of(
            lambda p: np.sin(p["x"]).sum(),
            lambda p, unused=unused: {"x": np.cos(p["x"]), "unused": unused},
            x=[0.3, 0.7],
            unused=np.ones(3),
        )
        assert gradaudit.audit(model).verdict is Verdict.AGREE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.5547217044063721, 1 / 3, 1e30])
def test_a_loss_of_nothing_that_is_audited_is_not_cleared(value, dtype):
    for gradient in (np.zeros(3, dtype), None):
        model = of(lambda p: np.dtype(dtype).type(value), lambda p, g=gradient: {"x": g}, x=np.ones(3, dtype))
        report = gradaudit.audit(model)
        assert (report.verdict, report["x"].verdict) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
        assert [finding.code for finding in report.findings] == ["GA704"]
    with pytest.raises(GradientMismatchError, match="does not depend on x, and its gradient is zero"):
        gradaudit.assert_gradients_agree(model)


def test_a_gradient_of_a_loss_of_nothing_is_wrong():
    report = gradaudit.audit(of(lambda p: 1.0, lambda p: {"x": np.ones(3)}, x=np.ones(3)))
    assert report.verdict is Verdict.DISAGREE


@pytest.mark.parametrize("flat", [lambda x: np.maximum(x - 20, 0).sum(), lambda x: float((x > 0.5).sum()),
                                  lambda x: np.clip(x.sum(), -1, 1)])  # fmt: skip
def test_a_flat_place_agrees_and_that_is_said(flat):
    report = gradaudit.audit(of(lambda p: flat(p["x"]), lambda p: {"x": np.zeros(3)}, x=np.array([2.0, 3.0, 1.5])))
    assert report.verdict is Verdict.AGREE
    (remark,) = report.remarks
    assert remark.startswith("The loss is flat here: ")


def test_what_moves_says_nothing_of_flat_places():
    model = of(lambda p: np.sin(p["x"]).sum(), lambda p: {"x": np.cos(p["x"]), "y": None}, x=[0.3], y=[0.1, 0.2])
    assert gradaudit.audit(model).remarks == ()
    # of an unused parameter alone nothing is compared
    alone = gradaudit.audit(model, parameters="y")
    assert [finding.code for finding in alone.findings] == ["GA704"]


def test_without_budget_a_constant_loss_stays_as_it_was():
    model = of(lambda p: 1.0, lambda p: {"x": np.zeros(3)}, x=np.ones(3))
    report = gradaudit.audit(model, max_evaluations=40)
    assert (report.complete, report.findings) == (False, ())


def test_a_saddle_and_a_minimum_agree():
    model = of(lambda p: (p["x"] ** 2).sum() + p["y"].sum() ** 3, lambda p: {"x": 2 * p["x"], "y": np.zeros(2)},
               x=np.zeros(3), y=np.zeros(2))  # fmt: skip
    assert gradaudit.audit(model).verdict is not Verdict.DISAGREE


def test_assert_raises_with_the_report_and_returns_it():
    assert gradaudit.assert_gradients_agree(mlp()).verdict is Verdict.AGREE
    with pytest.raises(GradientMismatchError, match="the gradients do not agree: DISAGREE") as error:
        gradaudit.assert_gradients_agree(mlp(times(2.0)))
    assert error.value.report.verdict is Verdict.DISAGREE
    assert isinstance(error.value, AssertionError)


class Interrupted:
    """A model that stops at the n-th loss."""

    def __init__(self, error, at):
        self.model, self.error, self.left = mlp(), error, at

    def parameters(self):
        return self.model.parameters()

    def loss(self, parameters):
        np.random.random()
        random.random()
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.model.loss(parameters)

    def value_and_grad(self, parameters):
        return self.model.value_and_grad(parameters)


@pytest.mark.parametrize(("error", "at"), [(KeyboardInterrupt(), 50), (ValueError("mine"), 1), (None, 10**9)])
def test_random_generators_are_as_before(error, at):
    np.random.seed(3)
    random.seed(3)
    before = np.random.get_state()[1].tolist(), random.getstate()
    if error is None:
        gradaudit.audit(Interrupted(error, at))
    else:
        with pytest.raises(type(error)):
            gradaudit.audit(Interrupted(error, at))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


def test_an_error_of_the_loss_at_perturbed_points_is_data():
    class Picky(Interrupted):
        def loss(self, parameters):
            if not np.array_equal(parameters["first"], self.model.parameters()["first"]):
                msg = "only here"
                raise ValueError(msg)
            return self.model.loss(parameters)

    report = gradaudit.audit(Picky(None, 0))
    assert report["first"].verdict is Verdict.INCONCLUSIVE
    assert report["bias"].verdict is Verdict.AGREE
    (finding,) = report.findings
    assert finding.code == "GA701"
    assert "is not finite, or raises" in finding.sentence


def test_many_models_in_one_table():
    report = gradaudit.audit_all({"right": mlp(), "wrong": mlp(times(2.0)), "other": of(
        lambda p: (p["x"] ** 2).sum(), lambda p: {"x": 2 * p["x"]}, x=[1.0])})  # fmt: skip
    assert report.verdict is Verdict.DISAGREE
    assert [p.verdict for p in report.parts] == [Verdict.AGREE, Verdict.DISAGREE, Verdict.AGREE]
    assert [p.gradient_difference for p in report.ports[:2]] == [0, pytest.approx(1)]
    assert np.isnan(report.ports[2].gradient_difference)
    assert report.part("wrong").verdict is Verdict.DISAGREE
    with pytest.raises(KeyError, match="no part 'none'; there are right, wrong, other"):
        report.part("none")
    assert report.evaluations == sum(p.evaluations for p in report.parts)


def test_a_minimum_of_everything_agrees_and_a_missing_gradient_does_not():
    for at, expected in ((0.0, Verdict.AGREE), (0.3, Verdict.DISAGREE)):
        model = of(lambda p: 1 + (p["x"] ** 2).sum(), lambda p: {"x": np.zeros(40)}, x=np.full(40, at))
        assert gradaudit.audit(model).verdict is expected


@pytest.mark.parametrize("error", [1e-3, 3e-3])
def test_a_direction_in_which_an_error_cancels_clears_nothing(error):
    for seed in range(60):
        x = np.random.default_rng(seed).standard_normal(40).astype("float32")
        factor = np.float32(1 + error)
        model = of(lambda p: (p["x"] * p["x"]).sum(), lambda p, factor=factor: {"x": 2 * factor * p["x"]}, x=x)
        report = gradaudit.audit(model, seed=seed)
        assert report.verdict is not Verdict.AGREE or report["x"].resolution > error


def with_small_bias(size, factor=1.0, *, dtype="float64"):
    """A layer and a bias of that size, whose gradient is multiplied."""
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((20, 6)).astype(dtype), rng.standard_normal((8, 30)).astype(dtype)
    w, bias = rng.standard_normal((6, 8)).astype(dtype), (size * rng.standard_normal(30)).astype(dtype)

    def gradient(p):
        h = np.tanh(x @ p["w"])
        out = h @ v + p["bias"]
        out = (2 / out.size * out).astype(dtype)
        return {"w": x.T @ (out @ v.T * (1 - h * h)), "bias": np.asarray(factor * out.sum(0), dtype)}

    return of(lambda p: ((np.tanh(x @ p["w"]) @ v + p["bias"]) ** 2).mean(), gradient, w=w, bias=bias)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-4, 1e-8, 1e-12, 1e-16, 1e-20, 1e-30])
def test_the_gradient_of_parameters_that_move_nothing_is_looked_at_all_the_same(size, dtype):
    """Steps of their own size show nothing of it, right or wrong; nor do they show that there is nothing."""
    report = gradaudit.audit(with_small_bias(size, dtype=dtype))
    assert report.verdict is Verdict.AGREE
    assert report["bias"].resolution < 2e-2
    for factor in (0.0, 1.1, -1.0):
        report = gradaudit.audit(with_small_bias(size, factor, dtype=dtype))
        assert report["bias"].verdict is Verdict.DISAGREE, str(report)
        assert report["w"].verdict is Verdict.AGREE


def test_longer_steps_cost_eight_evaluations_a_tensor():
    # baseline 3, whole model 21, along the gradient and two tensors: 8 each
    assert gradaudit.audit(with_small_bias(1.0)).evaluations == 3 + 21 + 8 * 3
    assert gradaudit.audit(with_small_bias(1e-12)).evaluations == 3 + 21 + 8 * 3 + 8


def test_entries_that_have_died_are_no_licence():
    """Beside others that live, in one tensor."""
    scale = np.where(np.arange(40) < 20, 1.0, 1e-40)
    x = scale * np.random.default_rng(0).standard_normal(40)

    def model(factor):
        return of(lambda p: np.sin(p["x"]).sum(), lambda p: {"x": np.where(scale < 1, factor, 1) * np.cos(x)}, x=x)

    assert gradaudit.audit(model(1.0)).verdict is Verdict.AGREE
    assert gradaudit.audit(model(0.0)).verdict is Verdict.DISAGREE


def test_what_is_defined_near_small_parameters_only_is_asked_there():
    """Where longer steps leave the domain they tell nothing."""
    w, small = np.array([0.3, 0.7, 1.2]), np.array([1e-9, 2e-9, 3e-9])

    def loss(p):
        return np.sin(p["w"]).sum() + 1e-15 * np.log(p["small"]).sum()

    with np.errstate(invalid="ignore"):
        report = gradaudit.audit(
            of(loss, lambda p: {"w": np.cos(p["w"]), "small": 1e-15 / p["small"]}, w=w, small=small)
        )
    assert report.verdict is Verdict.AGREE
