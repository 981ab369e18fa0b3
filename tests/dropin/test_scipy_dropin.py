"""`gradaudit.dropin.scipy` in the place of `scipy.optimize.check_grad`; beside it where SciPy is installed.

Without SciPy the numbers that are known stand alone: no test is skipped, each asserts something in both cases.
"""

from __future__ import annotations

import importlib.util
import inspect

import numpy as np
import pytest

from gradaudit.dropin.scipy import check_grad

X = np.array([-1.2, 1.0, 0.8])
#: As of SciPy 1.15 and later.
SIGNATURE = ["func", "grad", "x0", "args", "epsilon", "direction", "rng"]


def rosenbrock(x):
    return np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def gradient(x):
    g = np.zeros_like(x)
    g[1:] += 200 * (x[1:] - x[:-1] ** 2)
    g[:-1] += -400 * x[:-1] * (x[1:] - x[:-1] ** 2) - 2 * (1 - x[:-1])
    return g


def original():
    """SciPy's function, or None."""
    if importlib.util.find_spec("scipy") is None:
        return None
    from scipy.optimize import check_grad as theirs

    return theirs


def test_the_signature_is_that_of_the_original():
    ours = inspect.signature(check_grad).parameters
    assert list(ours) == SIGNATURE
    assert ours["args"].kind is inspect.Parameter.VAR_POSITIONAL
    theirs = original()
    if theirs is not None:
        given = inspect.signature(theirs).parameters
        shared = [name for name in ours if name in given]  # before 1.15 rng was called seed
        assert shared[:6] == SIGNATURE[:6]
        assert [ours[n].kind for n in shared] == [given[n].kind for n in shared]
        assert [ours[n].default for n in shared] == [given[n].default for n in shared]


def test_a_right_gradient_is_off_by_nothing():
    assert check_grad(rosenbrock, gradient, X) == 0.0
    theirs = original()
    if theirs is not None:
        assert 0 < theirs(rosenbrock, gradient, X) < 1e-3  # what its step leaves


POINTS = [np.random.default_rng(i).standard_normal(2 + i) for i in range(10)]


@pytest.mark.parametrize("x", [np.ones(4), *POINTS], ids=lambda x: f"{x[0]:.3f}")
def test_rounding_counts_as_nothing_and_an_error_just_beyond_it_counts(x):
    logistic, slope = lambda x: np.logaddexp(0, -x).sum(), lambda x: -1 / (1 + np.exp(x))
    for f, g in ((rosenbrock, gradient), (logistic, slope)):
        assert check_grad(f, g, x) == 0.0
        error = 1e-8 * (1 + np.abs(g(x)))
        assert check_grad(f, lambda x, g=g, error=error: g(x) + error, x) == pytest.approx(
            np.linalg.norm(error), rel=0.02
        )


def test_float32_values_are_as_exact_as_float32_is():
    single = lambda x: np.float32(rosenbrock(x.astype(np.float32)))  # noqa: E731
    assert check_grad(single, gradient, X) == 0.0
    assert check_grad(single, lambda x: 1.01 * gradient(x), X) == pytest.approx(
        0.01 * np.linalg.norm(gradient(X)), rel=0.1
    )


@pytest.mark.parametrize("off", [(0.3, 0.0, 0.0), (3.0, -4.0, 0.0), (0.0, 0.0, -1e-3)])
def test_a_wrong_one_is_off_by_the_norm_of_its_error(off):
    wrong = lambda x: gradient(x) + off  # noqa: E731
    assert check_grad(rosenbrock, wrong, X) == pytest.approx(np.linalg.norm(off), rel=1e-5)
    theirs = original()
    if theirs is not None:
        assert theirs(rosenbrock, wrong, X) == pytest.approx(np.linalg.norm(off), rel=3e-2)


def test_the_error_of_a_jacobian():
    f = lambda x, a: np.array([a * x[0] * x[1], np.sin(x[2])])  # noqa: E731
    jacobian = lambda x, a: np.array([[a * x[1], a * x[0], 0.0], [0.0, 0.0, np.cos(x[2]) + 0.5]])  # noqa: E731
    assert check_grad(f, jacobian, X, 2.0) == pytest.approx(0.5, rel=1e-8)
    theirs = original()
    if theirs is not None:
        assert theirs(f, jacobian, X, 2.0) == pytest.approx(0.5, rel=1e-5)


def test_a_random_direction():
    assert check_grad(rosenbrock, gradient, X, direction="random", rng=1) == 0.0
    doubled = check_grad(rosenbrock, lambda x: 2 * gradient(x), X, direction="random", rng=1)
    v = np.random.default_rng(1).standard_normal(X.shape)
    assert doubled == pytest.approx(abs(gradient(X) @ v), rel=1e-6)
    again = check_grad(rosenbrock, lambda x: 2 * gradient(x), X, direction="random", rng=np.random.default_rng(1))
    assert again == doubled


def test_it_raises_as_the_original():
    checks = [check for check in (check_grad, original()) if check is not None]
    for check in checks:
        with pytest.raises(ValueError, match="not a valid string"):
            check(rosenbrock, gradient, X, direction="some")
        with pytest.raises(ValueError, match="scalar valued func"):
            check(lambda x: x**2, lambda x: np.diag(2 * x), X, direction="random")


def test_epsilon_is_not_used():
    assert check_grad(rosenbrock, gradient, X, epsilon=10.0) == 0.0
