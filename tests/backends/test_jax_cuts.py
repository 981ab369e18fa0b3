"""Where JAX programs cut their gradient: the line, the gradient without the cut, the loss with its value held."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from tests import conftest

#: Collected where jax is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "jax" in conftest.tested()

T = 30


def model(function, **parameters):
    return registry.get("jax").function_model(function, parameters)


def base(dtype="float64"):
    rng = np.random.default_rng(1)
    return {"W": (0.5 * rng.standard_normal((3, 3))).astype(dtype), "b": rng.standard_normal(3).astype(dtype)}


def marked(function, marker="# CUT"):
    lines, start = inspect.getsourcelines(function)
    return [start + i for i, line in enumerate(lines) if line.rstrip().endswith(marker)]


def identity(x):
    return x


def in_python_loop(stop):
    import jax.numpy as jnp

    def loss(p):
        h = jnp.zeros(3)
        for _ in range(T):
            h = jnp.tanh(p["W"] @ stop(h) + p["b"])  # CUT
        return (h**2).sum()

    return loss


def in_jitted_scan(stop):
    import jax
    import jax.numpy as jnp

    def step(h, x):
        h = jnp.tanh(stop(h) @ p_["W"] + p_["b"] * x)  # CUT
        return h, (h**2).sum()

    p_ = {}

    @jax.jit
    def loss(p):
        p_.update(p)
        return jax.lax.scan(step, jnp.ones(3), jnp.linspace(0.5, 1, T, dtype=p["b"].dtype))[1].sum()

    loss.where = step
    return loss


def in_static_loop(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        def body(_, h):
            return jnp.tanh(p["W"] @ stop(h) + p["b"])  # CUT

        return (jax.lax.fori_loop(0, T, body, p["b"]) ** 2).sum()

    return loss


def in_checkpoint(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        @jax.checkpoint
        def block(h):
            return jnp.sin(p["W"] @ h) * stop(jnp.cos(h))  # CUT

        return block(block(p["b"])).sum()

    return loss


def in_nested_jit(stop):
    import jax
    import jax.numpy as jnp

    @jax.jit
    def helper(h):
        return jnp.sin(h) * stop(jnp.exp(h / 2))  # CUT

    def loss(p):
        return (helper(p["b"]) + helper(p["W"] @ p["b"])).sum()

    loss.where = helper.__wrapped__
    return loss


PROGRAMS = {f.__name__: f for f in (in_python_loop, in_jitted_scan, in_static_loop, in_checkpoint, in_nested_jit)}
EXECUTIONS = {"in_python_loop": T - 1, "in_jitted_scan": T, "in_static_loop": T, "in_checkpoint": 2, "in_nested_jit": 2}


@pytest.fixture
def stop():
    from jax.lax import stop_gradient

    return stop_gradient


def close(actual, expected, tolerance=1e-9):
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_cut_is_listed_and_removed(name, stop):
    cut, uncut = (model(PROGRAMS[name](s), **base()) for s in (stop, identity))
    (found,) = cut.cuts()
    program = PROGRAMS[name](stop)
    assert (found.kind, [found.line]) == ("stop_gradient", marked(getattr(program, "where", program)))
    assert found.path == __file__
    assert found.executions == EXECUTIONS[name]
    assert not found.library
    free = cut.without([found])
    loss, gradients = free.value_and_grad(free.parameters())
    close(gradients, uncut.value_and_grad(uncut.parameters())[1])
    assert float(loss) == pytest.approx(float(cut.loss(cut.parameters())), rel=1e-14)
    assert uncut.cuts() == []


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_loss_with_its_value_held(name, stop):
    """At the base point it is the loss; its derivative, there, is the gradient that is cut."""
    cut = model(PROGRAMS[name](stop), **base())
    held = cut.holding(cut.cuts())
    assert float(held.loss(held.parameters())) == pytest.approx(float(cut.loss(cut.parameters())), rel=1e-14)
    own = cut.value_and_grad(cut.parameters())[1]
    close(held.value_and_grad(held.parameters())[1], own)
    h = 1e-5
    for index in ((0, 1), (2, 2)):
        losses = []
        for step in (-h, h):
            moved = {n: p.copy() for n, p in base().items()}
            moved["W"][index] += step
            losses.append(float(held.loss(moved)))
        assert (losses[1] - losses[0]) / (2 * h) == pytest.approx(own["W"][index], abs=1e-8)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_audit_names_the_line(name, dtype, stop):
    program = PROGRAMS[name](stop)
    report = gradaudit.audit(model(program, **base(dtype)))
    assert report.verdict is Verdict.DISAGREE
    assert [(f.code, f.confidence) for f in report.findings] == [("GA101", "proven")], str(report)
    (line,) = marked(getattr(program, "where", program))
    assert f"test_jax_cuts.py:{line} in" in report.findings[0].sentence
    accepted = gradaudit.audit(model(program, **base(dtype)), intended=[f"test_jax_cuts.py:{line}"])
    assert accepted.verdict is Verdict.AGREE, str(accepted)
    assert gradaudit.audit(model(PROGRAMS[name](identity), **base(dtype))).findings == ()


def test_a_cut_in_a_branch_is_removed_but_not_held(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        return jax.lax.cond(p["b"][0] > -9, lambda b: (stop(b) * b).sum(), lambda b: b.sum(), p["b"])  # CUT

    cut = model(loss, b=base()["b"])
    (found,) = cut.cuts()
    free = cut.without([found])
    close(free.value_and_grad(free.parameters())[1], {"b": 2 * base()["b"]})
    assert cut.holding([found]) is None
    report = gradaudit.audit(model(lambda p: loss(p) + jnp.sin(p["b"]).sum(), b=base()["b"]))
    assert report.findings[0].code == "GA101"


def test_only_what_depends_on_parameters_is_listed(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        scale = stop(jnp.arange(3.0).sum())
        return (stop(p["b"]) * p["b"]).sum() * scale  # CUT

    cut = model(loss, b=base()["b"])
    assert [c.line for c in cut.cuts()] == marked(loss)
    assert all(c.library for c in model(lambda p: jax.nn.softmax(p["b"])[0], b=base()["b"]).cuts())
