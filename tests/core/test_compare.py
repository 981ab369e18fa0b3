"""The verdict rule on numbers alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradaudit.compare import Precision, Verdict, compare, worst
from gradaudit.direction import Direction
from gradaudit.numeric.estimate import DerivativeEstimate

DOUBLE, NATIVE_SINGLE = Precision(analytic=2e-16, numeric=2e-16), Precision(analytic=1e-7, numeric=1e-7)
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
