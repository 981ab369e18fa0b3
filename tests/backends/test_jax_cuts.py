"""Where JAX programs cut their gradient: the line, the gradient without the cut, the loss with its value held."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from tests import conftest
from tests.backends.cutting import base, marked

#: Collected where jax is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "jax" in conftest.tested()

T = 30


def model(function, **parameters):
    return registry.get("jax").function_model(function, parameters)


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


def in_branch(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        def taken(h):
            return jnp.sin(h) * stop(jnp.cos(h))  # CUT

        h = jax.lax.cond(p["b"][0] > -9, taken, lambda h: stop(h) * h, p["W"] @ p["b"])
        return (h * p["b"]).sum()

    return loss


def in_branch_of_scan(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        def even(h):
            return jnp.tanh(p["W"] @ h) + p["b"]

        def odd(h):
            return jnp.sin(stop(h)) * h  # CUT

        def step(h, i):
            h = jax.lax.cond(i % 2 == 0, even, odd, h)
            return h, (h**2).sum()

        return jax.lax.scan(step, p["b"], jnp.arange(T))[1].sum()

    return loss


def in_vmap(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        def row(w):
            return (stop(jnp.sin(w)) * w * p["b"]).sum()  # CUT

        return jax.vmap(row)(p["W"]).sum()

    return loss


def in_nested_scans(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        def inner(h, _):
            return jnp.tanh(p["W"] @ stop(h) + p["b"]), None  # CUT

        def outer(h, x):
            h = jax.lax.scan(inner, h, None, length=4)[0]
            return h, (h * x).sum()

        return jax.lax.scan(outer, p["b"], jnp.linspace(1, 2, 5, dtype=p["b"].dtype), reverse=True)[1].sum()

    return loss


#: Name to program, and how often the cut runs.
_ALL = {
    in_python_loop: T - 1,
    in_jitted_scan: T,
    in_static_loop: T,
    in_checkpoint: 2,
    in_nested_jit: 2,
    in_branch_of_scan: T,
    in_vmap: 1,
    in_nested_scans: 20,
}
PROGRAMS = {f.__name__: f for f in _ALL}
EXECUTIONS = {f.__name__: n for f, n in _ALL.items()}


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


def moved(model, direction, step):
    return {n: p + step * direction[n] for n, p in model.parameters().items()}


def test_a_cut_in_a_branch_is_held_while_the_branch_is_the_same(stop):
    cut, uncut = (model(in_branch(s), **base()) for s in (stop, identity))
    found = cut.cuts()
    assert marked(in_branch)[0] in {c.line for c in found}
    free = cut.without(found)
    close(free.value_and_grad(free.parameters())[1], uncut.value_and_grad(uncut.parameters())[1])
    held = cut.holding(found)
    assert float(held.loss(held.parameters())) == pytest.approx(float(cut.loss(cut.parameters())), rel=1e-14)
    direction = {"W": np.ones((3, 3)), "b": np.array([1.0, -1.0, 0.5])}
    own = sum(float((g * direction[n]).sum()) for n, g in cut.value_and_grad(cut.parameters())[1].items())
    losses = [float(held.loss(moved(cut, direction, h))) for h in (-1e-5, 1e-5)]
    assert (losses[1] - losses[0]) / 2e-5 == pytest.approx(own, abs=1e-8)
    # what the other branch would have cut off at the base point nobody knows
    far = {"W": base()["W"], "b": base()["b"] - 20}
    assert np.isnan(held.loss(far))
    report = gradaudit.audit(model(in_branch(stop), **base()))
    assert [(f.code, f.confidence) for f in report.findings] == [("GA101", "proven")], str(report)


def test_two_cuts_on_one_line_are_two(stop):
    import jax.numpy as jnp

    def loss(p):
        return (stop(jnp.sin(p["b"])) * stop(jnp.cos(p["b"])) * p["b"]).sum()  # CUT

    cut = model(loss, b=base()["b"])
    first, second = cut.cuts()
    assert [first.line, second.line] == marked(loss) * 2
    assert first.column < second.column
    b = base()["b"]
    alone = cut.without([first]).value_and_grad(cut.parameters())[1]["b"]
    np.testing.assert_allclose(alone, np.cos(b) * (np.sin(b) + b * np.cos(b)), rtol=1e-9)


def test_a_tree_is_cut_once(stop):
    def loss(p):
        q = stop({"x": p["b"], "n": 3, "y": p["W"]})  # CUT
        return (q["x"] * p["b"]).sum() + (q["y"] * p["W"]).sum()

    (found,) = model(loss, **base()).cuts()
    assert (found.line, found.executions) == (*marked(loss), 1)


def test_what_is_left_keeps_its_line(stop):
    import jax.numpy as jnp

    def loss(p):
        a = stop(jnp.sin(p["b"]))
        c = stop(jnp.cos(p["b"]))  # CUT
        return (a * c * p["b"]).sum()

    cut = model(loss, b=base()["b"])
    first, second = cut.cuts()
    assert cut.without([first]).cuts() == [second]
    assert cut.holding([first]).cuts() == [second]
    both = cut.without([first, second]).value_and_grad(cut.parameters())[1]
    close(cut.without([first]).without([second]).value_and_grad(cut.parameters())[1], both)


def test_a_cut_that_no_gradient_would_reach_is_not_listed(stop):
    import jax
    import jax.numpy as jnp

    def unused(p):
        stop(p["b"])
        return (p["b"] ** 2).sum()

    def index(p):
        return (p["b"] ** 2)[jnp.argmax(stop(p["b"]))]

    def constant_in_branch(p):
        return jax.lax.cond(p["b"][0] > -9, lambda b, k: (b * stop(k)).sum(), lambda b, k: b.sum(), p["b"], jnp.ones(3))

    def under_a_rule(p):
        @jax.custom_jvp
        def rule(x):
            return jnp.sin(stop(x))

        rule.defjvp(lambda primals, tangents: (rule(*primals), jnp.cos(primals[0]) * tangents[0]))
        return rule(p["b"]).sum()

    for loss in (unused, index, constant_in_branch, under_a_rule):
        assert model(loss, b=base()["b"]).cuts() == [], loss.__name__


def test_bfloat16_is_cut_too(stop):
    import jax.numpy as jnp

    def loss(p):
        return (stop(p["b"].astype(jnp.bfloat16)).astype(p["b"].dtype) * p["b"]).sum()  # CUT

    assert [c.line for c in model(loss, b=base()["b"]).cuts()] == marked(loss)


def test_a_dynamic_loop_cannot_be_held(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        def body(state):
            i, h = state
            return i + 1, jnp.tanh(p["W"] @ stop(h) + p["b"])  # CUT

        return (jax.lax.while_loop(lambda state: state[0] < 5, body, (0, p["b"]))[1] ** 2).sum()

    cut = model(loss, **base())
    found = cut.cuts()
    assert [c.line for c in found] == marked(loss)
    assert cut.holding(found) is None
    free = cut.without(found)
    direction = {"W": np.ones((3, 3)), "b": np.ones(3)}
    losses = [float(cut.loss(moved(cut, direction, h))) for h in (-1e-5, 1e-5)]
    assert free.jvp(cut.parameters(), direction) == pytest.approx((losses[1] - losses[0]) / 2e-5, rel=1e-7)


def test_what_cannot_be_taken_apart_is_not_removable(stop):
    import jax
    from jax.sharding import AxisType, PartitionSpec

    def loss(p):
        mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
        spec = PartitionSpec("i")
        return jax.shard_map(lambda b: stop(b) * b, mesh=mesh, in_specs=spec, out_specs=spec)(p["b"]).sum()  # CUT

    cut = model(loss, b=base()["b"])
    (found,) = cut.cuts()
    assert ([found.line], found.removable) == (marked(loss), False)
    assert cut.without([found]) is None
    assert cut.holding([found]) is None


def test_a_callback_is_held_but_not_removed(stop):
    import jax

    def loss(p):
        shape = jax.ShapeDtypeStruct((3,), p["b"].dtype)
        return (jax.pure_callback(np.sin, shape, stop(p["b"]), vmap_method="sequential") * p["b"]).sum()  # CUT

    cut = model(loss, b=base()["b"])
    found = cut.cuts()
    assert [(c.kind, c.removable) for c in found] == [("stop_gradient", True), ("callback", False)]
    assert cut.without(found) is None
    held = cut.holding(found[1:])
    close(held.value_and_grad(held.parameters())[1], {"b": np.sin(base()["b"])})


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_float64_twin_holds_float64_values(name, stop):
    narrow = model(PROGRAMS[name](stop), **base("float32"))
    twin = narrow.twin()
    assert list(twin.cuts()) == list(narrow.cuts())
    held = narrow.holding(narrow.cuts()).twin()
    point = twin.parameters()
    assert held.loss(point).dtype == np.float64
    assert float(held.loss(point)) == pytest.approx(float(twin.loss(point)), rel=1e-12)
    close(held.value_and_grad(point)[1], twin.value_and_grad(point)[1])


def test_only_what_depends_on_parameters_is_listed(stop):
    import jax
    import jax.numpy as jnp

    def loss(p):
        scale = stop(jnp.arange(3.0).sum())
        return (stop(p["b"]) * p["b"]).sum() * scale  # CUT

    cut = model(loss, b=base()["b"])
    assert [c.line for c in cut.cuts()] == marked(loss)
    assert all(c.library for c in model(lambda p: jax.nn.softmax(p["b"])[0], b=base()["b"]).cuts())
