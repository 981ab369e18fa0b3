"""Derivatives with bounds: never outside the bound, tight, at a known cost, also at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends.numpy import NumpyModel
from gradaudit.direction import Point, random_direction
from gradaudit.numeric.budget import Budget, Stop
from gradaudit.numeric.estimate import Known, estimate, follow_up
from gradaudit.numeric.noise import cluster_residual, quantum
from gradaudit.numeric.sampler import Sampler
from tests.core.models import of

FAMILIES = {
    "sin": (np.sin, np.cos),
    "exp": (np.exp, np.exp),
    "offset": (lambda x: 1e4 + np.sin(x), np.cos),
    "cube": (lambda x: x**3, lambda x: 3 * x**2),
    "fast": (lambda x: np.sin(40 * x) / 40, lambda x: np.cos(40 * x)),
    "tiny": (lambda x: x.dtype.type(1e-30) * np.sin(x), lambda x: 1e-30 * np.cos(x)),
    "log": (np.log, lambda x: 1 / x),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
}


def sampler_of(family, x, *, budget=None):
    f, slope = FAMILIES[family]
    weights = np.random.default_rng(9).standard_normal(x.shape)
    gradients = {"x": (slope(x.astype("float64")) * weights).astype(x.dtype)}
    model = of(lambda p: (f(p["x"]) * weights.astype(x.dtype)).sum(dtype=x.dtype), lambda p: gradients, x=x)
    exact = {"x": slope(x.astype("float64")) * weights.astype(x.dtype)}
    budget = budget or Budget(10_000)
    return Sampler(model, budget, gradients=gradients, batch_bytes=10**6, dtype=str(x.dtype)), exact


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_stays_within_the_bound(family, dtype):
    rng = np.random.default_rng(1)
    bounds = []
    with np.errstate(invalid="ignore"):
        for seed in range(25):
            x = (np.abs(rng.standard_normal(5)) + 0.05).astype(dtype)
            sampler, exact = sampler_of(family, x)
            direction = random_direction("x", {"x": float(np.sqrt((x**2).mean()))}, seed)
            (found,) = estimate(sampler, [direction], "test")
            assert abs(found.value - direction.dot(exact)) <= found.bound
            bounds.append(found.bound / direction.norm(exact))
    limits = {"float64": 1e-6, "float32": 1e-2}
    if not (family == "offset" and dtype == "float32"):  # 1e4 + sin has three digits of slope in float32
        assert np.median(bounds) <= limits[dtype]


def test_the_cost_is_counted():
    budget = Budget(1000)
    x = np.array([0.3, 0.7, 1.1])
    sampler, exact = sampler_of("sin", x, budget=budget)
    directions = [random_direction("x", {"x": 1.0}, seed) for seed in range(3)]
    full = estimate(sampler, directions, "full")
    assert [e.evaluations for e in full] == [21, 21, 21]
    assert budget.spent == {"full": 63}
    known = Known(sigma=full[0].sigma, base=full[0].base, step=full[0].step)
    cheap = follow_up(sampler, directions, known, "cheap")
    assert [e.evaluations for e in cheap] == [8, 8, 8]
    assert budget.evaluations == 87
    for direction, found in zip(directions, cheap, strict=True):
        assert abs(found.value - direction.dot(exact)) <= found.bound <= 1e-6


@pytest.mark.parametrize("kink", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("curvature", [0.0, 1e-2, -1e-2])
def test_a_follow_up_knows_how_large_a_kink_may_be(kink, curvature):
    """Also where curvature has the other sign; where there is neither, next to nothing."""
    model = of(
        lambda p: (1 + p["x"] + kink * abs(p["x"]) + curvature * p["x"] ** 2).sum(),
        lambda p: {"x": np.ones(1)},
        x=np.zeros(1),
    )
    sampler = Sampler(model, Budget(100), gradients={"x": None}, batch_bytes=10**6, dtype="float64")
    direction = random_direction("x", {"x": 1.0}, 0)
    (found,) = follow_up(sampler, [direction], Known(sigma=1e-16, base=1.0, step=0.2), "test")
    moved = abs(direction.block("x", (1,))[0])
    assert found.bend >= kink * moved
    if not curvature:
        assert found.bend <= 2 * kink * moved + 1e-10


def test_a_spent_budget_stops_before_the_evaluation():
    budget = Budget(20)
    sampler, _ = sampler_of("sin", np.array([0.3]), budget=budget)
    with pytest.raises(Stop):
        estimate(sampler, [random_direction("x", {"x": 1.0}, 0)], "test")
    assert budget.evaluations == 0


def test_the_edge_of_the_domain_is_no_error():
    def loss(p):
        if p["x"][0] > 1.05:
            msg = "outside"
            raise RuntimeError(msg)
        return np.sqrt(p["x"][0] - 0.9)

    with np.errstate(invalid="ignore"):
        model = of(loss, lambda p: {"x": 0.5 / np.sqrt(p["x"] - 0.9)}, x=[1.0])
        sampler = Sampler(model, Budget(1000), gradients={"x": None}, batch_bytes=1, dtype="float64")
        (found,) = estimate(sampler, [random_direction("x", {"x": 1.0}, 0)], "test")
    direction = random_direction("x", {"x": 1.0}, 0).block("x", (1,))[0]
    assert abs(found.value - direction * 0.5 / np.sqrt(0.1)) <= found.bound <= 1e-4


def test_a_point_without_neighbours_has_no_estimate():
    model = of(lambda p: np.nan if p["x"][0] != 1 else 1.0, lambda p: {"x": p["x"]}, x=[1.0])
    sampler = Sampler(model, Budget(1000), gradients={"x": None}, batch_bytes=1, dtype="float64")
    (found,) = estimate(sampler, [random_direction("x", {"x": 1.0}, 0)], "test")
    assert found.status == "left the domain"
    assert np.isnan(found.value)
    assert np.isinf(found.bound)


def far_out(x):
    """A gelu, computed as 1 + erf, of one number; its derivative from digits that 1 + erf does not have."""
    erf = np.vectorize(math.erf)
    slope = 0.5 * math.erfc(-x / math.sqrt(2)) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return of(lambda p: (0.5 * p["x"] * (1 + erf(p["x"] / math.sqrt(2)))).sum(), lambda p: {"x": slope}, x=[x]), slope


@pytest.mark.parametrize("x", [-10.0, -10.2, -10.4])
def test_what_rounding_makes_a_plateau_of_lies_within_the_bound(x):
    """At all steps but the longest the loss is 0 in every digit, as that of a rounding on purpose."""
    model, slope = far_out(x)
    sampler = Sampler(model, Budget(1000), gradients={"x": None}, batch_bytes=1, dtype="float64")
    first, second = (random_direction("x", {"x": abs(x)}, seed) for seed in (3, 1))
    (found,) = estimate(sampler, [first], "test")
    assert found.status == "plateau"
    assert found.value == 0 < abs(slope * first.block("x", (1,))[0]) <= found.bound <= 1e-13
    known = Known(sigma=found.sigma, base=found.base, step=found.step)
    (found,) = follow_up(sampler, [second], known, "test")
    assert abs(found.value - slope * second.block("x", (1,))[0]) <= found.bound <= 1e-13


@pytest.mark.parametrize("x", [-5.9, -6.2, -6.5, -7.0])
def test_a_staircase_whose_treads_rise_is_seen_from_afar(x):
    """Near the base point 1 + erf stands still, in every digit, and the loss is a straight line of another slope."""

    def audited(factor):
        model, slope = far_out(x)
        return gradaudit.audit(of(model.loss, lambda p: {"x": np.array([factor * slope])}, x=[x]))

    model, slope = far_out(x)
    sampler = Sampler(model, Budget(1000), gradients={"x": None}, batch_bytes=1, dtype="float64")
    direction = random_direction("x", {"x": abs(x)}, 0)
    (found,) = estimate(sampler, [direction], "test")
    assert abs(found.value - slope * direction.block("x", (1,))[0]) <= found.bound
    assert audited(1.0).verdict is not Verdict.DISAGREE
    assert audited(10.0).verdict is Verdict.DISAGREE


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("width", [1e-7, 1e-9])
def test_a_kink_nearby_is_no_such_staircase(side, width):
    """The slope is that of the piece one stands on, and the other one is wrong."""

    def audited(factor):
        return gradaudit.audit(
            of(
                lambda p: (2 * p["x"] + np.maximum(side * (p["x"] - 1 + side * width), 0)).sum(),
                lambda p: {"x": np.full(1, factor)},
                x=[1.0],
            )
        )

    assert audited(2.0 + side).verdict is Verdict.AGREE
    assert audited(2.0).verdict is Verdict.DISAGREE


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-11])
def test_a_gradient_through_a_rounding_is_wrong_however_small(size):
    x = np.random.default_rng(0).standard_normal(20)
    through, none = (
        of(lambda p: size * np.round(p["x"]).sum(), lambda p, g=g: {"x": g}, x=x)
        for g in (np.full(20, size), np.zeros(20))
    )
    assert gradaudit.audit(through).verdict is Verdict.DISAGREE
    assert gradaudit.audit(none).verdict is Verdict.AGREE


class Batched:
    """A model whose batch axis fails on request."""

    point_bytes = 8

    def __init__(self, fails):
        self.fails = fails
        self.batches = 0

    def parameters(self):
        return {"x": np.array([1.0])}

    def loss(self, parameters):
        return np.float64(parameters["x"][0] ** 2)

    def value_and_grad(self, parameters):
        return self.loss(parameters), {"x": 2 * parameters["x"]}

    def along(self, points):
        self.batches += 1
        if self.fails:
            msg = "no batching rule"
            raise RuntimeError(msg)
        return np.array([(1 + p.t) ** 2 for p in points])


@pytest.mark.parametrize("fails", [False, True])
def test_batches_within_the_memory_budget_and_without_a_batching_rule(fails):
    model = Batched(fails)
    sampler = Sampler(model, Budget(1000), gradients={"x": None}, batch_bytes=16, dtype="float64")
    direction = random_direction("x", {"x": 1.0}, 0)
    values, _ = sampler.values([Point(direction, 0.0)] * 6, "test")
    np.testing.assert_array_equal(values, np.ones(6))
    assert model.batches == (1 if fails else 3)  # two points fit; a batch that fails where no point does is not retried


def test_noise_is_seen_through_curvature_and_kinks():
    rng = np.random.default_rng(0)
    steps = np.array([-3.9, -2.8, -1.9, -0.8, 0.0, 0.8, 1.9, 2.8, 3.9])
    for smooth in (steps**2, np.abs(steps), 5 * steps, steps**3):
        residuals = [cluster_residual(steps, smooth + 1e-9 * rng.standard_normal(9)) for _ in range(200)]
        assert 2e-10 < np.median(residuals) < 2e-9
    assert cluster_residual(steps[:4], steps[:4]) == np.inf


def test_the_quantum_of_single_precision_shows():
    values = np.float32([1.1, 1.7, 1.3]).astype("float64")
    assert quantum(values) == 2.0**-23
    assert quantum(np.array([0.0, np.nan])) == 0
    assert quantum(np.array([3.0, 0.5])) == 0.5


def analytic(factor=1.0, loss=lambda p: np.sin(p["x"]).sum() * 1e-3 + 1e3):
    x = np.random.default_rng(0).standard_normal(40)
    gradient = {"x": factor * 1e-3 * np.cos(x)}
    return NumpyModel(loss, {"x": x}, gradient=lambda p: gradient, analytic=True)


def test_complex_steps_lose_no_digits_and_cost_one_evaluation_a_direction():
    report = gradaudit.audit(analytic())
    assert report.verdict is Verdict.AGREE
    # baseline 3, one full estimate, the check, the direction along the gradient and that of the tensor
    assert report.evaluations <= 3 + 35 + 1 + 2
    assert report["x"].resolution < 1e-4
    assert gradaudit.audit(analytic(1 + 1e-5)).verdict is Verdict.DISAGREE


@pytest.mark.parametrize(
    "loss",
    [
        lambda p: np.abs(np.sin(p["x"])).sum() * 1e-3,  # not analytic: the imaginary part is lost
        lambda p: float(np.real(np.sin(p["x"])).sum()) * 1e-3,
    ],
)
def test_a_loss_that_is_not_analytic_is_caught(loss):
    x = np.random.default_rng(0).standard_normal(40)
    slope = np.cos(x) * (np.sign(np.sin(x)) if "abs" in loss.__code__.co_names else 1) * 1e-3
    model = NumpyModel(loss, {"x": x}, gradient=lambda p: {"x": slope}, analytic=True)
    assert gradaudit.audit(model).verdict is Verdict.AGREE
