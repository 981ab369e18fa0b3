"""A float32 gradient whose rounding is amplified: the relation between its entries shows an error of 1e-3 all the same.

Right ones, with other constants too, are not condemned; which entry is wrong is not said, for it cannot be known.
"""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends.numpy import NumpyModel
from gradaudit.measure import related

STEPS, UNIT = 30, 2.0**-23
#: Float32 holds it as 1.
STORED = 1 + 0.999 * 2.0**-24


def logistic(seed, *, off=0.0, factor=1.0):
    """The sum of five logistic maps in float32, ``off`` in dL/dr; its twin holds ``factor`` in float64."""
    rng = np.random.default_rng(seed)
    start = {"x": rng.uniform(0.2, 0.8, 5).astype("float32"), "r": np.array(3.6, "float32")}

    def path(p):
        c, seen = p["x"].dtype.type(factor), [p["x"]]
        for _ in range(STEPS):
            seen.append(c * p["r"] * seen[-1] * (1 - seen[-1]))
        return c, seen

    def value_and_grad(p):
        c, seen = path(p)
        adjoint, by_r = np.ones_like(p["x"]), np.zeros_like(p["x"])
        for x in seen[-2::-1]:
            by_r = by_r + adjoint * (c * x * (1 - x))
            adjoint = adjoint * (c * p["r"] * (1 - 2 * x))
        by_r = by_r.sum() * (1 + (off if p["x"].dtype == np.float32 else 0))
        return seen[-1].sum(), {"x": adjoint, "r": np.asarray(by_r, p["r"].dtype)}

    return NumpyModel(lambda p: path(p)[1][-1].sum(), start, value_and_grad=value_and_grad, any_dtype=True)


def test_an_error_as_large_as_the_rounding_is_seen_and_not_said_to_be_of_one_tensor():
    report = gradaudit.audit(logistic(7, off=1e-3))
    assert report.verdict is Verdict.DISAGREE
    assert [p.name for p in report.parameters if p.verdict is Verdict.DISAGREE] == []
    (finding, *_) = report.findings
    assert (finding.code, finding.title) == ("GA703", "wrong in float32 only")
    assert "in one of x, r. Which of them cannot be told" in finding.sentence


@pytest.mark.parametrize("factor", [1.0, STORED], ids=["the same constants", "stored constants"])
@pytest.mark.parametrize("seed", range(8))
def test_rounding_alone_condemns_nothing(seed, factor):
    assert gradaudit.audit(logistic(seed, factor=factor), seed=seed).verdict is not Verdict.DISAGREE


def test_errors_of_a_thousandth_are_seen():
    verdicts = [gradaudit.audit(logistic(seed, off=1e-3), seed=seed).verdict for seed in (4, 5, 6, 7, 10)]
    assert verdicts == [Verdict.DISAGREE] * 5


def differences(rng, *, error=0.0, noise=1e-4, n=5, points=17):
    """Of n entries of the size of 1, along one common direction and a little beside it; an error in the first."""
    common = rng.standard_normal((points, 1)) * rng.uniform(0.5, 2, n)
    return 0.01 * common + noise * rng.standard_normal((points, n)) + error * (np.arange(n) == 0)


@pytest.mark.parametrize("seed", range(20))
def test_what_the_common_direction_does_not_make_is_an_error(seed):
    rng = np.random.default_rng(seed)
    of = {
        "gradient": np.ones(5),
        "lengths": np.ones(5),
        "moves": np.zeros((16, 5)),
        "repeating": np.full(5, 1e-5),
        "unit": UNIT,
    }
    assert related.broken(differences(rng, error=5e-3), **of)
    assert not related.broken(differences(rng), **of)
    # what may repeat itself explains it
    assert not related.broken(differences(rng, error=5e-3), **of | {"repeating": np.full(5, 1e-2)})


def test_what_cannot_tell_does_not():
    rng, ones = np.random.default_rng(0), np.ones(5)
    of = {"lengths": ones, "moves": np.zeros((16, 5)), "repeating": np.full(5, 1e-5), "unit": UNIT}
    assert not related.broken(differences(rng, error=5e-3, points=13), gradient=ones, **of), "few points"
    assert not related.broken(differences(rng, error=5e-3, noise=1e-7), gradient=ones, **of), "not drawn anew"


@pytest.mark.parametrize(
    ("apart", "n", "worth"), [(1e-3, 8, True), (1e-5, 8, False), (1e-3, 9, False)], ids=["yes", "exact", "too many"]
)
def test_when_it_is_asked(apart, n, worth):
    assert related.amplified(np.full(n, apart), np.ones(n), np.ones(n)) is worth
