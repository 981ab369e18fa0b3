"""gradaudit.dropin.jax in the place of jax.test_util: a public project's tests, rules right and wrong, signatures.

The public project is optax (github.com/google-deepmind/optax, Apache License 2.0), whose wheel brings its tests:
``optax/losses/_classification_test.py`` is run as it is installed, but for the one import, and never copied.
"""

from __future__ import annotations

import importlib.util
import inspect
import types
import unittest
from functools import partial
from pathlib import Path

import pytest

from tests import conftest

__test__ = "jax" in conftest.tested()

if __test__:
    import jax
    import jax.numpy as jnp
    import jax.test_util as originals

    from gradaudit.dropin import jax as dropin
    from gradaudit.dropin.jax import check_grads, check_jvp, check_vjp

ORIGINAL, OURS = "import jax.test_util as jaxtest\n", "import gradaudit.dropin.jax as jaxtest\n"
X = [0.3, -1.2, 0.7, 2.0]
WRONG = "the derivative is wrong"


@pytest.fixture
def x():
    return jnp.array(X, jnp.float32)


@pytest.fixture
def optax_tests():
    """The module, with ours imported."""
    path = importlib.util.find_spec("optax.losses._classification_test").origin
    source = Path(path).read_text(encoding="utf-8")
    assert source.count(ORIGINAL) == 1
    module = types.ModuleType("optax_classification_test")
    exec(compile(source.replace(ORIGINAL, OURS), path, "exec"), module.__dict__)
    assert module.jaxtest is dropin
    return module


def gradient_tests(module):
    cases = [c for c in vars(module).values() if isinstance(c, type) and hasattr(c, "test_gradient")]
    result = unittest.TestResult()
    unittest.TestSuite(case("test_gradient") for case in cases).run(result)
    assert result.errors == []
    assert result.testsRun == 3
    return {test.__class__.__name__: text for test, text in result.failures}


class TestOptax:
    def test_green(self, optax_tests):
        assert gradient_tests(optax_tests) == {}

    def test_red_where_its_rule_is_broken(self, optax_tests, monkeypatch):
        losses = optax_tests._classification
        broken = jax.custom_jvp(losses.weighted_logsoftmax.__wrapped__)

        def rule(primals, tangents):
            value, tangent = losses._weighted_logsoftmax_jvp(primals, tangents)
            return value, 1.01 * tangent

        broken.defjvp(rule)
        monkeypatch.setattr(losses, "weighted_logsoftmax", broken)
        failed = gradient_tests(optax_tests)
        assert list(failed) == ["SafeSoftmaxCrossEntropyTest"]
        assert f"AssertionError: JVP: {WRONG}" in failed["SafeSoftmaxCrossEntropyTest"]


def softened(factor=1.0, second=1.0):
    """``sqrt(1 + x^2)`` with a reverse rule; ``second`` spoils only the derivative of the rule."""

    @jax.custom_vjp
    def slope(x):
        return x / jnp.sqrt(1 + x * x)

    slope.defvjp(lambda x: (slope(x), x), lambda x, g: (second * g / (1 + x * x) ** 1.5,))

    @jax.custom_vjp
    def soft(x):
        return jnp.sqrt(1 + x * x)

    soft.defvjp(lambda x: (soft(x), x), lambda x, g: (factor * g * slope(x),))
    return soft


def log1pexp(factor=1.0):
    """With a forward rule, of which JAX makes the reverse one."""

    @jax.custom_jvp
    def rule(x):
        return jnp.log1p(jnp.exp(x))

    rule.defjvp(lambda x, t: (rule(*x), factor * t[0] * jax.nn.sigmoid(x[0])))
    return rule


class TestCheckGrads:
    @pytest.mark.parametrize("order", [1, 2])
    @pytest.mark.parametrize("modes", [("fwd",), ("rev",), ("lin",), ("fwd", "rev")])
    def test_forward_rule(self, x, order, modes):
        check_grads(log1pexp(), (x,), order, modes=modes)
        with pytest.raises(AssertionError, match=WRONG):
            check_grads(log1pexp(1.01), (x,), order, modes=modes)

    @pytest.mark.parametrize("order", [1, 2])
    def test_reverse_rule(self, x, order):
        check_grads(softened(), (x,), order, modes=["rev"])
        with pytest.raises(AssertionError, match=f"^VJP: {WRONG}"):
            check_grads(softened(1.01), (x,), order, modes=["rev"])

    def test_the_second_order_alone(self, x):
        wrong = softened(second=1.05)
        check_grads(wrong, (x,), 1, modes=["rev"])
        with pytest.raises(AssertionError, match=f"^VJP of VJP: {WRONG}"):
            check_grads(wrong, (x,), 2, modes=["rev"])

    def test_a_reverse_rule_has_no_forward_mode(self, x):
        for check in (originals.check_grads, check_grads):
            with pytest.raises(TypeError, match="forward-mode"):
                check(softened(), (x,), 1, modes=["fwd"])

    def test_float64_and_pytrees(self):
        with jax.enable_x64(True):
            given = {"a": jnp.array(X), "b": 2.0}
            check_grads(lambda p: {"y": log1pexp()(p["a"]) * p["b"]}, (given,), 2)
            with pytest.raises(AssertionError, match=WRONG):
                check_grads(lambda p: log1pexp(1.001)(p["a"]) * p["b"], (given,), 1, rtol=1e-4)


class TestProducts:
    def test_check_vjp(self, x):
        f = log1pexp()
        check_vjp(f, partial(jax.vjp, f), (x,))

        def wrong(x):
            value, pullback = jax.vjp(f, x)
            return value, lambda g: tuple(1.01 * y for y in pullback(g))

        with pytest.raises(AssertionError, match=f"^mine: {WRONG}"):
            check_vjp(f, wrong, (x,), err_msg="mine")

    def test_check_jvp(self, x):
        f = log1pexp()
        check_jvp(f, partial(jax.jvp, f), (x,))
        with pytest.raises(AssertionError, match=f"^mine: {WRONG}"):
            check_jvp(f, partial(jax.jvp, log1pexp(1.01)), (x,), err_msg="mine")


@pytest.mark.parametrize("name", ["check_grads", "check_jvp", "check_vjp"])
def test_the_signature_is_the_original(name):
    own, original = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
        for module in (dropin, originals)
    )
    assert own == original
