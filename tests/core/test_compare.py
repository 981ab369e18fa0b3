"""The verdict rule on numbers alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradaudit.compare import Precision, Verdict, caution, compare, detectable, excluded, worst
from gradaudit.direction import Direction
from gradaudit.numeric.estimate import DerivativeEstimate

DOUBLE = Precision(analytic=2e-16, numeric=2e-16)
NATIVE_SINGLE = Precision(analytic=1e-7, numeric=1e-7, caution=caution(1e-7, 1e-6, 20))
V = Direction(label="v", scales={"x": 1.0}, entry=(0,))


def verdict(analytic, numeric, bound, *, precision=DOUBLE, whole=1.0, constant=False):
    found = DerivativeEstimate(
        value=numeric, bound=bound, base=1.0, sigma=1e-16, step=0.1, order=2, evaluations=21, status="converged",
        constant=constant,
    )  # fmt: skip
    gradients = {"x": np.array([analytic])}
    return compare(V, found, gradients, precision=precision, whole=whole, significant=1e-3)


@pytest.mark.parametrize(
    ("analytic", "numeric", "bound", "expected"),
    [
        (1.0, 1.0, 1e-9, Verdict.AGREE),
        (1.0, 1.0 + 5e-7, 1e-9, Verdict.AGREE),  # within the tolerance of the dtype
        (1.0, 1.0 + 5e-6, 1e-9, Verdict.DISAGREE),
        (1.0, 1.5, 0.1, Verdict.DISAGREE),
        (1.0, 1.05, 0.1, Verdict.INCONCLUSIVE),  # agrees, but an error of 10 % would not have been seen
        (1.0, math.nan, math.inf, Verdict.INCONCLUSIVE),
        (0.0, 1.0, 1e-9, Verdict.DISAGREE),
        (1.0, 0.0, 1e-9, Verdict.DISAGREE),
        (0.0, 1e-12, 1e-11, Verdict.AGREE),  # zero within a bound that is negligible beside the whole
        (0.0, 1e-2, 1e-1, Verdict.INCONCLUSIVE),
    ],
)
@pytest.mark.parametrize("unit", [1.0, 1e-30, 1e30])
def test_there_is_no_absolute_floor(analytic, numeric, bound, expected, unit):
    assert verdict(analytic * unit, numeric * unit, bound * unit, whole=unit).verdict is expected


def test_a_constant_loss_and_a_zero_gradient_agree():
    assert verdict(0.0, 0.0, 0.0, constant=True, whole=0.0).verdict is Verdict.AGREE
    assert verdict(0.0, 0.0, 1e-30, constant=True, whole=0.0).verdict is Verdict.AGREE
    assert verdict(0.0, 0.0, 1e-3, constant=False, whole=0.0).verdict is Verdict.INCONCLUSIVE


def test_native_single_precision_needs_three_bounds():
    assert verdict(1.0, 1.02, 0.01, precision=NATIVE_SINGLE).verdict is Verdict.INCONCLUSIVE
    assert verdict(1.0, 1.04, 0.01, precision=NATIVE_SINGLE).verdict is Verdict.DISAGREE
    assert verdict(1.0, 1.0002, 1e-5, precision=NATIVE_SINGLE).verdict is Verdict.AGREE


def test_the_resolution_is_what_would_have_been_seen():
    seen = verdict(1.0, 1.0, 1e-9)
    assert verdict(1.0, 1.0 + 1.01 * seen.resolution, 1e-9).verdict is Verdict.DISAGREE
    assert verdict(1.0, 1.0 + 0.99 * seen.resolution, 1e-9).verdict is not Verdict.DISAGREE


def test_worst():
    assert worst([]) is Verdict.AGREE
    assert worst([Verdict.AGREE, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    assert worst([Verdict.DISAGREE, Verdict.INCONCLUSIVE]) is Verdict.DISAGREE


def test_caution_follows_the_accepted_false_alarms():
    assert caution(2e-16, 1e-6, 20) == 1
    assert caution(1e-7, 1e-6, 20) == 3
    assert caution(2e-16, 1e-15, 20) > 1
    assert caution(2e-16, 1e-15, 2000) > caution(2e-16, 1e-15, 20)


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_what_would_have_been_seen_is_seen_in_99_of_100(n):
    rng = np.random.default_rng(n)
    resolutions = list(rng.uniform(1.0, 3.0, n))
    error = detectable(resolutions)
    seen = (np.abs(error * rng.standard_normal((100_000, n))) > resolutions).any(axis=1)
    assert seen.mean() == pytest.approx(0.99, abs=2e-3)


def test_without_a_resolution_nothing_is_seen():
    assert detectable([math.inf]) == math.inf
    assert detectable([0.0, 1.0]) == 0


def test_the_twins_gradient_shows_how_much_is_rounding():
    gradients, exact = {"x": np.float32([1.0 + 1e-5])}, {"x": np.array([1.0])}
    found = DerivativeEstimate(
        value=1.0, bound=1e-10, base=1.0, sigma=1e-16, step=0.1, order=2, evaluations=21, status="converged",
        constant=False,
    )  # fmt: skip

    def judged(reference, excess=0.0):
        precision = Precision(analytic=1.2e-7, numeric=2e-16, reference=reference, excess={"x": np.array([excess])})
        return compare(V, found, gradients, precision=precision, whole=1.0, significant=1e-3).verdict

    assert judged(exact) is Verdict.AGREE
    # the twin has the same error: it is none of rounding
    assert judged({"x": np.array([1.0 + 1e-5])}) is Verdict.DISAGREE
    # more than rounding explains
    assert judged(exact, 5e-6) is Verdict.DISAGREE


@pytest.mark.parametrize("size", [3, 4, 50])
@pytest.mark.parametrize("n", [5, 10, 24])
def test_gaps_exclude_errors_that_would_have_made_larger_ones(n, size):
    """Noise of the numbers makes gaps larger: fewer errors pass, never more."""
    rng = np.random.default_rng([n, size])
    v = rng.uniform(0.5, 1.5, (5000, n, size)) * rng.choice([-1.0, 1.0], (5000, n, size))
    error = rng.standard_normal(size)
    shown = (v @ error) / np.linalg.norm(v * error, axis=-1)
    for noise in (0.0, 0.5):
        gaps = shown + noise * rng.standard_normal(shown.shape)
        passed = np.mean([excluded(list(row)) < 1 for row in gaps])
        assert passed <= (0.02 if noise == 0 else 0.012)


def test_few_gaps_exclude_nothing_and_many_small_ones_a_small_error():
    assert excluded([1e-6] * 4) == math.inf
    assert 1e-3 < excluded([1e-3] * 6) < 3.5e-3


def test_resolutions_whose_product_is_no_number():
    assert 1e-200 < detectable([1e-200, 2e-200]) < 1e-197
