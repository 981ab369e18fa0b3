"""Operations whose derivative TensorFlow gets wrong at some points: named at the line that calls them, and replaced."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from tests import conftest
from tests.backends.cutting import marked

#: Collected where TensorFlow is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "tensorflow" in conftest.tested()

C = np.random.default_rng(0).uniform(0.5, 1.5, (3, 4))


def model(x, **options):
    import tensorflow as tf

    def loss(p):
        return tf.reduce_sum(C * tf.math.cumprod(p["x"], **options))  # OPERATION

    return registry.get("tensorflow").function_model(loss, {"x": x}), marked(loss, "# OPERATION")


def truth(x, axis=0, exclusive=False, reverse=False):
    """By complex steps of NumPy's own."""

    def loss(x):
        y = np.flip(x, axis) if reverse else x
        p = np.cumprod(y, axis=axis)
        if exclusive:
            first = np.ones_like(np.take(p, [0], axis=axis))
            p = np.concatenate([first, np.delete(p, -1, axis=axis)], axis=axis)
        return (C * (np.flip(p, axis) if reverse else p)).sum()

    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1e-30j
        gradient[index] = loss(moved).imag / 1e-30
    return gradient


def inputs(zero):
    x = np.random.default_rng(1).uniform(0.5, 1.5, (3, 4))
    x[1, 2] = 0.0 if zero else x[1, 2]
    return x


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumprod_at_zero(axis, exclusive, reverse):
    options = {"axis": axis, "exclusive": exclusive, "reverse": reverse}
    m, lines = model(inputs(zero=True), **options)
    (rule,) = m.rules()
    assert (rule.kind, rule.name, [rule.line]) == ("operation", "cumprod", lines)
    assert rule.error > 1e-2
    loss, gradients = m.replacing([rule]).value_and_grad(m.parameters())
    assert loss == pytest.approx(m.loss(m.parameters()), rel=1e-14)
    assert gradients["x"] == pytest.approx(truth(m.parameters()["x"], **options), rel=1e-12, abs=1e-14)
    report = gradaudit.audit(m)
    assert report.verdict is Verdict.DISAGREE
    assert (report.findings[0].code, report.findings[0].confidence) == ("GA501", "proven")


def test_where_it_is_right_nothing_is_said():
    m, _ = model(inputs(zero=False))
    assert m.rules() == ()
    assert gradaudit.audit(m).verdict is Verdict.AGREE


def test_it_is_put_back():
    from tensorflow.python.ops import gen_math_ops

    own = gen_math_ops.cumprod
    model(inputs(zero=True))[0].rules()
    assert gen_math_ops.cumprod is own
