"""`gradaudit.dropin.tensorflow` in the place of `tf.test.compute_gradient`.

The tests of two custom operators are our own, written as those of TensorFlow's custom operators commonly are: a
`tf.test.TestCase` that asserts that both Jacobians are close, in float32.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from tests import conftest

#: Collected where TensorFlow is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "tensorflow" in conftest.tested()

RNG = np.random.default_rng(3)
REAL = RNG.standard_normal((2, 3))
COMPLEX = REAL + 1j * RNG.standard_normal((2, 3))


@pytest.fixture
def tf():
    import tensorflow as tf

    return tf


@pytest.fixture
def compute_gradient():
    from gradaudit.dropin.tensorflow import compute_gradient

    return compute_gradient


def suite(factor):
    """The tests of operators whose rules are off by this factor, as a project has them."""
    import tensorflow as tf

    from gradaudit.dropin.tensorflow import compute_gradient

    @tf.custom_gradient
    def mish(x):
        inner = tf.tanh(tf.math.softplus(x))
        return x * inner, lambda g: factor * g * (inner + x * tf.sigmoid(x) * (1.0 - inner**2))

    @tf.custom_gradient
    def bilinear(x, w):
        return x @ w, lambda g: (g @ tf.transpose(w), factor * tf.transpose(x) @ g)

    class Operators(tf.test.TestCase):
        def test_mish(self):
            x = tf.constant([-2.0, -1.0, 0.5, 1.0, 2.0], tf.float32)
            theoretical, numerical = compute_gradient(mish, [x])
            self.assertAllClose(theoretical, numerical, rtol=1e-4, atol=1e-4)

        def test_bilinear(self):
            x, w = np.float32(REAL), np.float32(REAL.T)
            theoretical, numerical = compute_gradient(bilinear, [x, w], delta=1e-2)
            self.assertAllClose(theoretical[0], numerical[0], rtol=1e-4, atol=1e-4)
            self.assertAllClose(theoretical[1], numerical[1], rtol=1e-4, atol=1e-4)

    return Operators


@pytest.mark.parametrize("name", ["test_mish", "test_bilinear"])
def test_a_projects_tests_pass(name):
    getattr(suite(1.0)(name), name)()


@pytest.mark.parametrize("name", ["test_mish", "test_bilinear"])
@pytest.mark.parametrize("factor", [1.001, -1.0, 0.0])
def test_and_fail_when_a_rule_is_wrong(name, factor):
    with pytest.raises(AssertionError):
        getattr(suite(factor)(name), name)()


def test_the_signature_is_that_of_the_original(tf, compute_gradient):
    assert _plain(compute_gradient) == _plain(tf.test.compute_gradient)


def _plain(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


CASES = {
    "one": (lambda tf, x: tf.sin(x), [REAL]),
    "a number": (lambda tf, x: x**2, [1.5]),
    "two": (lambda tf, x, y: x @ tf.transpose(y), [REAL, REAL + 1.0]),
    "to a number": (lambda tf, x: tf.reduce_sum(x**3), [REAL]),
    "independent": (lambda tf, x, y: tf.exp(x), [REAL, REAL]),
    "gathered": (lambda tf, x: tf.gather(x, [1, 1, 0]), [REAL]),
    "complex": (lambda tf, x: x * x, [COMPLEX]),
    "complex to real": (lambda tf, x: tf.abs(x), [COMPLEX]),
    "real to complex": (lambda tf, x: tf.signal.fft(tf.complex(x, 2.0 * x)), [REAL]),
    "complex and real": (lambda tf, x, y: x * tf.complex(y, y), [COMPLEX, REAL]),
    "not holomorphic": (lambda tf, x: tf.math.conj(x) * 2.0, [COMPLEX]),
    "empty result": (lambda tf, x: x[:0], [REAL]),
    "empty input": (lambda tf, x: tf.reduce_sum(x) + tf.ones(2, x.dtype), [np.zeros((0, 3))]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("single", [False, True])
def test_jacobians_are_laid_out_as_the_originals(tf, compute_gradient, case, single):
    function, inputs = CASES[case]
    narrow = lambda x: np.asarray(x, np.complex64 if np.iscomplexobj(x) else np.float32)  # noqa: E731
    inputs = [narrow(x) if single else np.asarray(x) for x in inputs]
    ours, theirs = (check(lambda *xs: function(tf, *xs), inputs) for check in (compute_gradient, _original(tf)))
    for got, expected, rtol in ((ours[0], theirs[0], 1e-5), (ours[1], theirs[1], 1e-2)):
        assert isinstance(got, tuple)
        assert [(j.shape, j.dtype) for j in got] == [(j.shape, j.dtype) for j in expected]
        for j, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(j, e, rtol=rtol, atol=rtol)


def _original(tf):
    return tf.test.compute_gradient


def test_numeric_jacobians_are_exact_where_the_originals_are_not(tf, compute_gradient):
    x = np.float32([0.3, 7.0, 30.0])
    analytic, numeric = compute_gradient(lambda x: tf.exp(x / 3.0) * 1e3, [x])
    np.testing.assert_allclose(numeric[0], analytic[0], rtol=1e-6)
    _, coarse = tf.test.compute_gradient(lambda x: tf.exp(x / 3.0) * 1e3, [x])
    assert np.abs(np.diag(coarse[0]) / np.diag(analytic[0]) - 1).max() > 1e-5


@pytest.mark.parametrize("which", ["ours", "original"])
def test_it_raises_as_the_original(tf, compute_gradient, which):
    check = compute_gradient if which == "ours" else tf.test.compute_gradient

    def empty(gradient):
        return tf.custom_gradient(lambda x: (x[:0], lambda g: gradient))

    with pytest.raises(ValueError, match="must be a list or tuple"):
        check(tf.sin, np.float32([1.0]))
    with pytest.raises(ValueError, match="Empty tensor with nonzero gradients"):
        check(empty(tf.ones(3)), [np.zeros(3, np.float32)])


def test_max_error_does_not_hide_what_is_no_number(tf):
    from gradaudit.dropin.tensorflow import max_error

    one = np.ones((1, 1))
    assert max_error([one, 2 * one], [one, one]) == 1.0
    assert max_error([], []) == 0.0
    assert np.isnan(max_error([2 * one, np.nan * one], [one, one]))
