"""Hand-written derivatives in JAX programs: the place, how far each is off, the gradient without it."""

from __future__ import annotations

import functools
import inspect
import math

import numpy as np
import pytest

from gradaudit.backends import registry
from tests import conftest
from tests.backends.cutting import base, marked

#: Collected where jax is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "jax" in conftest.tested()

T = 30


def model(function, **parameters):
    return registry.get("jax").function_model(function, parameters)


def scaled_sin(factor, kind="custom_vjp"):
    """sin with a derivative that is off by a factor."""
    import jax
    import jax.numpy as jnp

    def forward(x):
        return jnp.sin(x), x

    def backward(x, ct):  # RULE
        return (factor * ct * jnp.cos(x),)

    def tangent(primals, tangents):  # RULE
        return jnp.sin(primals[0]), factor * jnp.cos(primals[0]) * tangents[0]

    if kind == "custom_vjp":
        mine = jax.custom_vjp(jnp.sin)
        mine.defvjp(forward, backward)
    else:
        mine = jax.custom_jvp(jnp.sin)
        mine.defjvp(tangent)
    return mine


def in_python_loop(rule):
    def loss(p):
        h = p["b"]
        for _ in range(6):
            h = rule(p["W"] @ h) + h
        return (h**2).sum()

    return loss


def in_scan_in_jit(rule):
    import jax
    import jax.numpy as jnp

    @jax.jit
    def loss(p):
        def step(h, x):
            h = rule(p["W"] @ h + x)
            return h, (h**2).sum()

        return jax.lax.scan(step, p["b"], jnp.linspace(0, 1, T, dtype=p["b"].dtype))[1].sum()

    return loss


def in_nested_scans(rule):
    import jax
    import jax.numpy as jnp

    def loss(p):
        def inner(h, _):
            return rule(p["W"] @ h + p["b"]), None

        def outer(h, x):
            h = jax.lax.scan(inner, h, None, length=4)[0]
            return h, (h * x).sum()

        return jax.lax.scan(outer, p["b"], jnp.linspace(1, 2, 5, dtype=p["b"].dtype), reverse=True)[1].sum()

    return loss


def in_branch_of_scan(rule):
    import jax
    import jax.numpy as jnp

    def loss(p):
        def step(h, i):
            h = jax.lax.cond(i % 3 == 1, rule, lambda h: jnp.tanh(p["W"] @ h), h)
            return h, (h**2).sum()

        return jax.lax.scan(step, p["b"], jnp.arange(T))[1].sum()

    return loss


def in_checkpoint(rule):
    import jax

    def loss(p):
        @jax.checkpoint
        def block(h):
            return rule(p["W"] @ h) + h

        return block(block(p["b"])).sum()

    return loss


def in_vmap(rule):
    import jax

    def loss(p):
        return jax.vmap(lambda w: (rule(w) * p["b"]).sum())(p["W"]).sum()

    return loss


#: Program to how often the rule runs.
_ALL = {
    in_python_loop: 6,
    in_scan_in_jit: T,
    in_nested_scans: 20,
    in_branch_of_scan: T // 3,
    in_checkpoint: 2,
    in_vmap: 1,
}
PROGRAMS = {f.__name__: f for f in _ALL}
EXECUTIONS = {f.__name__: n for f, n in _ALL.items()}


def close(actual, expected, tolerance=1e-10):
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance)


def plain():
    import jax.numpy as jnp

    return jnp.sin


@pytest.mark.parametrize("kind", ["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_wrong_rule_is_found_and_replaced(name, kind):
    wrong = model(PROGRAMS[name](scaled_sin(1.25, kind)), **base())
    (found,) = wrong.rules()
    assert (found.kind, found.path, found.library) == (kind, __file__, False)
    assert found.line == marked(scaled_sin, "# RULE")[kind == "custom_jvp"]
    assert found.executions == EXECUTIONS[name]
    assert (found.error, found.argument) == (pytest.approx(0.25, rel=1e-12), 0)
    mended = wrong.replacing([found])
    point = wrong.parameters()
    assert mended.loss(point).tobytes() == wrong.loss(point).tobytes()
    expected = model(PROGRAMS[name](plain()), **base()).value_and_grad(point)[1]
    close(mended.value_and_grad(point)[1], expected)
    assert not np.allclose(wrong.value_and_grad(point)[1]["W"], expected["W"], rtol=1e-3)
    assert mended.rules() == []


@pytest.mark.parametrize("kind", ["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_right_rule_is_right(name, kind):
    (found,) = model(PROGRAMS[name](scaled_sin(1.0, kind)), **base()).rules()
    assert found.executions == EXECUTIONS[name]
    assert found.error < 1e-12


@pytest.mark.parametrize("name", ["in_scan_in_jit", "in_vmap"])
def test_in_single_precision(name):
    errors = [model(PROGRAMS[name](scaled_sin(f)), **base("float32")).rules()[0].error for f in (1.0, 1.25)]
    assert errors[0] < 1e-4
    assert errors[1] == pytest.approx(0.25, abs=1e-4)
    narrow = model(PROGRAMS[name](scaled_sin(1.25)), **base("float32"))
    twin = narrow.replacing(narrow.rules()).twin()
    expected = model(PROGRAMS[name](plain()), **twin.parameters())
    close(twin.value_and_grad(twin.parameters())[1], expected.value_and_grad(expected.parameters())[1])


def layer(factor):
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def dense(w, b, x):
        return jnp.tanh(x @ w + b)

    def forward(w, b, x):
        return dense(w, b, x), (w, b, x)

    def backward(kept, ct):
        w, b, x = kept
        ct = ct * (1 - jnp.tanh(x @ w + b) ** 2)
        return factor * x.T @ ct, ct.sum(0), ct @ w.T

    dense.defvjp(forward, backward)
    return dense


@pytest.mark.parametrize("wrong", range(6))
def test_the_third_of_six_layers(wrong):
    layers = [layer(1.5 if i == wrong else 1.0) for i in range(6)]

    def loss(p, layers=layers):
        h = p["x"]
        for i, dense in enumerate(layers):
            h = dense(p[f"w{i}"], p[f"b{i}"], h)
        return (h**2).sum()

    rng = np.random.default_rng(0)
    sizes = [3, 4, 5, 6, 5, 4, 3]
    weights = {f"w{i}": rng.standard_normal(sizes[i : i + 2]) / 2 for i in range(6)}
    network = model(
        loss, x=rng.standard_normal((8, 3)), **weights, **{f"b{i}": np.ones(sizes[i + 1]) for i in range(6)}
    )
    # one source line made all six: one rule, whose worst layer counts
    (found,) = network.rules()
    assert (found.name, found.executions) == ("dense", 6)
    assert (found.error, found.argument) == (pytest.approx(0.5, rel=1e-9), 0)
    right = model(functools.partial(loss, layers=[layer(1.0)] * 6), **network.parameters())
    assert right.rules()[0].error < 1e-12
    point = network.parameters()
    close(network.replacing([found]).value_and_grad(point)[1], right.value_and_grad(point)[1])


def test_the_rule_of_the_third_layer_alone():
    def loss(rules):
        def loss(p):
            h = p["b"]
            for rule in rules:
                h = rule(p["W"] @ h) + h
            return (h**2).sum()

        return loss

    right = scaled_sin(1.0)
    odd = model(loss([right, right, scaled_sin(1.25, "custom_jvp"), right, right, right]), **base())
    first, second = odd.rules()
    assert [first.line, second.line] == marked(scaled_sin, "# RULE")
    assert [first.executions, second.executions] == [5, 1]
    assert first.error < 1e-12
    assert second.error == pytest.approx(0.25, rel=1e-12)
    point = odd.parameters()
    expected = model(loss([right] * 6), **base()).value_and_grad(point)[1]
    close(odd.replacing([second]).value_and_grad(point)[1], expected)
    assert odd.replacing([second]).rules() == [first]
    close(odd.replacing([first]).value_and_grad(point)[1], odd.value_and_grad(point)[1])


def test_a_rule_with_a_name():
    import jax

    @jax.custom_jvp
    def cube(x):
        return x**3

    @cube.defjvp
    def cubed(primals, tangents):  # RULE
        return primals[0] ** 3, 2 * primals[0] ** 2 * tangents[0]  # it should be 3

    (found,) = model(lambda p: cube(p["b"]).sum(), b=base()["b"]).rules()
    assert (found.name, [found.line]) == ("cube", marked(test_a_rule_with_a_name, "# RULE"))
    assert str(found) == f"custom_jvp cube at test_jax_rules.py:{found.line}"
    assert found.error == pytest.approx(1 / 3, rel=1e-12)


@pytest.mark.parametrize("wrong", range(3))
def test_wrong_for_one_of_three_arguments(wrong):
    import jax
    import jax.numpy as jnp

    factors = [3.0 if i == wrong else 1.0 for i in range(3)]

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def mine(power, tree, index, z):
        return (tree["x"] ** power * tree["y"])[index] * z

    def forward(power, tree, index, z):
        return mine(power, tree, index, z), (tree, index, z)

    def backward(power, kept, ct):
        tree, index, z = kept
        into = jnp.zeros_like(tree["x"]).at[index].set(ct * z)
        x = factors[0] * into * power * tree["x"] ** (power - 1) * tree["y"]
        y = factors[1] * into * tree["x"] ** power
        return {"x": x, "y": y}, None, factors[2] * ct * (tree["x"] ** power * tree["y"])[index]

    mine.defvjp(forward, backward)

    def loss(p):
        return (mine(2, {"x": p["x"], "y": p["y"]}, jnp.array([2, 0]), p["z"]) ** 2).sum()

    tested = model(loss, x=np.arange(1.0, 4.0), y=np.ones(3), z=np.array([0.5, 2.0]))
    (found,) = tested.rules()
    assert (found.error, found.argument) == (pytest.approx(2.0, rel=1e-12), wrong)
    factors[wrong] = 1.0
    assert tested.rules()[0].error < 1e-12


def test_one_variable_passed_twice():
    """A rule may give the whole gradient to one of two arguments that are the same, and zero to the other."""
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def product(x, y):
        return x * y

    product.defvjp(lambda x, y: (x * y, x), lambda x, ct: (2 * x * ct, jnp.zeros_like(x)))

    @jax.jit
    def inner(x, y):
        return jax.lax.scan(lambda c, _: (c + product(x, y), None), jnp.zeros_like(x), None, length=3)[0]

    def different(p):
        return product(p["b"], 3 * p["b"]).sum()

    for loss in (lambda p: product(p["b"], p["b"]).sum(), lambda p: inner(p["b"], p["b"]).sum()):
        assert model(loss, b=base()["b"]).rules()[0].error < 1e-12
    assert model(different, b=base()["b"]).rules()[0].error > 0.3


def test_no_gradient_is_asked_of_constants():
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def error(prediction, target, weight):
        return (weight * (prediction - target) ** 2).sum()

    error.defvjp(
        lambda p, t, w: (error(p, t, w), (p, t, w)),
        lambda kept, ct: (2 * ct * kept[2] * (kept[0] - kept[1]), None, None),
    )

    def loss(p):
        return error(p["b"] ** 2, jnp.ones(3), jax.lax.stop_gradient(p["b"]))

    assert model(loss, b=base()["b"]).rules()[0].error < 1e-12
    (found,) = model(lambda p: error(p["b"] ** 2, jnp.ones(3), p["b"]), b=base()["b"]).rules()
    assert (found.error, found.argument) == (1.0, 2)


def test_only_results_that_the_loss_uses_are_compared():
    import jax

    @jax.custom_vjp
    def both(x, y):
        return x * y, x + y

    both.defvjp(lambda x, y: (both(x, y), (x, y)), lambda kept, ct: (ct[0] * kept[1] + ct[1], ct[0] * kept[0]))

    def loss(p, n=1):
        return sum(r.sum() for r in both(p["b"], 2 * p["b"])[:n])

    assert model(loss, b=base()["b"]).rules()[0].error < 1e-12
    (found,) = model(functools.partial(loss, n=2), b=base()["b"]).rules()
    assert (found.error > 0.1, found.argument) == (True, 1)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_integers_go_in_and_come_out(factor):
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def pick(index, x):
        return index + 1, x[index] ** 2

    def backward(kept, ct):
        index, x = kept
        none = np.zeros(index.shape, jax.dtypes.float0)
        return none, jnp.zeros_like(x).at[index].add(factor * 2 * ct[1] * x[index])

    pick.defvjp(lambda index, x: (pick(index, x), (index, x)), backward)

    def loss(p):
        index, y = pick(jnp.array([1, 1]), p["b"])
        return y.sum() + p["b"][index].sum()

    (found,) = model(loss, b=base()["b"]).rules()
    assert (found.error, found.argument) == (pytest.approx(factor - 1, abs=1e-12), 0)


def test_an_installed_package_is_compared_and_said_to_be_one():
    source = inspect.getsource(scaled_sin)
    names = {}
    exec(compile(source, "/somewhere/site-packages/ops/sines.py", "exec"), names)
    (found,) = model(in_vmap(names["scaled_sin"](1.5)), **base()).rules()
    assert (found.place, found.library) == (
        f"sines.py:{source.splitlines().index('    def backward(x, ct):  # RULE') + 1}",
        True,
    )
    assert found.error == pytest.approx(0.5)


def test_a_rule_that_raises_is_not_compared():
    import jax

    @jax.custom_vjp
    def broken(x):
        return 2 * x

    def backward(_, ct):
        raise ArithmeticError

    broken.defvjp(lambda x: (2 * x, None), backward)
    (found,) = model(lambda p: broken(p["b"]).sum(), b=base()["b"]).rules()
    assert math.isnan(found.error)


def test_jax_itself_is_listed_apart():
    import jax

    def loss(p):
        h = jax.nn.relu(p["W"] @ p["b"]) + jax.nn.softplus(p["b"]) + jax.nn.silu(p["b"])
        return jax.nn.logsumexp(h) + jax.nn.gelu(h).sum()

    found = model(loss, **base()).rules()
    assert {"relu", "logaddexp"} <= {r.name for r in found}
    assert all(r.library and math.isnan(r.error) for r in found)
    smooth = model(lambda p: jax.nn.softplus(p["b"]).sum(), b=base()["b"])
    replaced = smooth.replacing(smooth.rules())
    assert replaced.rules() == []
    close(replaced.value_and_grad(replaced.parameters())[1], smooth.value_and_grad(smooth.parameters())[1])


def test_the_rules_of_jax_stay_in_what_a_rule_is_compared_with():
    """At its kink the rule of relu is one choice; another would be found wrong there."""
    import jax

    def loss(factor):
        @jax.custom_vjp
        def twice(x):
            return 2 * jax.nn.relu(x)

        twice.defvjp(lambda x: (twice(x), x), lambda x, ct: (factor * ct * (x > 0),))
        return lambda p: twice(p["b"]).sum()

    b = np.array([0.0, 1.0, -2.0, 3.0])
    assert model(loss(2.0), b=b).rules()[0].error == 0
    assert model(loss(3.0), b=b).rules()[0].error == pytest.approx(0.5)


def test_a_rule_in_a_rule():
    """The outer rule is what the gradient uses; it is compared with the true derivative of what lies in it."""
    import jax

    def outer(factor, inner):
        @jax.custom_vjp
        def square(x):
            return jax.lax.stop_gradient(inner(x)) * inner(x)

        square.defvjp(lambda x: (square(x), x), lambda x, ct: (factor * ct * plain()(2 * x),))
        return lambda p: square(p["b"]).sum()

    right, wrong = (model(outer(f, scaled_sin(7.0)), b=base()["b"]) for f in (1.0, 2.0))
    (found,) = right.rules()
    assert (found.name, found.executions) == ("square", 1)
    assert found.error < 1e-12
    (found,) = wrong.rules()
    assert found.error == pytest.approx(1.0, rel=1e-12)
    mended = wrong.replacing([found])
    close(mended.value_and_grad(mended.parameters())[1], {"b": np.sin(2 * base()["b"])})


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_primal_without_reverse_mode(factor):
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def root(a):
        return jax.lax.while_loop(lambda x: jnp.abs(x * x - a).max() > 1e-14, lambda x: (x + a / x) / 2, 1 + a)

    root.defvjp(lambda a: (root(a), root(a)), lambda r, ct: (factor * ct / (2 * r),))
    (found,) = model(lambda p: root(p["b"] ** 2 + 1).sum(), b=base()["b"]).rules()
    assert found.error == pytest.approx(factor - 1, abs=1e-9)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_tangent_rule_that_cannot_be_turned_round(factor):
    import jax
    import jax.numpy as jnp

    @jax.custom_jvp
    def double(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] + x / 3), (0, x))[1]

    @double.defjvp
    def doubled(primals, tangents):
        return double(*primals), jax.lax.while_loop(lambda t: jnp.bool_(False), lambda t: t, factor * 2 * tangents[0])

    (found,) = model(lambda p: double(p["b"]).sum(), b=base()["b"]).rules()
    assert found.error == pytest.approx(factor - 1, abs=1e-12)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_primal_without_derivative(factor):
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def host(x, y):
        return jax.pure_callback(lambda x, y: np.sin(x) * y, x, x, y)

    host.defvjp(
        lambda x, y: (host(x, y), (x, y)),
        lambda kept, ct: (ct * jnp.cos(kept[0]) * kept[1], factor * ct * jnp.sin(kept[0])),
    )
    tested = model(lambda p: host(p["x"], 1e4 * p["x"] ** 2).sum(), x=base()["b"])
    (found,) = tested.rules()
    assert found.error == pytest.approx(factor - 1, abs=1e-9)
    if factor > 1:
        assert found.argument == 1


def test_in_a_loop_of_unknown_length():
    import jax

    def loss(rule):
        def body(state):
            i, h = state
            return i + 1, rule(p_["W"] @ h + p_["b"])

        p_ = {}

        def loss(p):
            p_.update(p)
            return (jax.lax.while_loop(lambda state: state[0] < 5, body, (0, p["b"]))[1] ** 2).sum()

        return loss

    tested = model(loss(scaled_sin(2.0, "custom_jvp")), **base())
    (found,) = tested.rules()
    assert (found.executions, found.error) == (5, pytest.approx(1.0, rel=1e-12))
    direction = {"W": np.ones((3, 3)), "b": np.ones(3)}
    point = tested.parameters()
    expected = model(loss(plain()), **base()).jvp(point, direction)
    assert tested.replacing([found]).jvp(point, direction) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rolled", [True, False])
def test_a_rule_that_is_wrong_late_in_a_loop(rolled):
    """The first, the middle and the last execution are compared, or call."""
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def capped(x):
        return 1.1 * x

    capped.defvjp(lambda x: (1.1 * x, x), lambda x, ct: (jnp.where(x > 10, 0, 1.1) * ct,))

    def loss(p):
        h = p["b"]
        if rolled:
            return jax.lax.fori_loop(0, 40, lambda _, h: capped(h), h).sum()
        for _ in range(40):
            h = capped(h)
        return h.sum()

    (found,) = model(loss, b=np.array([1.0])).rules()
    assert (found.executions, found.error) == (40, pytest.approx(1.0))
    assert model(loss, b=np.array([0.1])).rules()[0].error < 1e-12


def test_a_rule_that_the_loss_does_not_run():
    import jax

    def branch(p):
        return jax.lax.cond(p["b"][0] > 9, scaled_sin(2.0), lambda b: b**2, p["b"]).sum()

    def unused(p):
        scaled_sin(2.0)(p["b"])
        return p["b"].sum()

    def cut(p):
        return (scaled_sin(2.0)(jax.lax.stop_gradient(p["b"])) * p["b"]).sum()

    def below(p):
        return (jax.lax.stop_gradient(scaled_sin(2.0)(p["b"])) * p["b"]).sum()

    for loss in (branch, unused, cut, below):
        assert model(loss, b=base()["b"]).rules() == [], loss.__name__


def test_custom_gradient():
    import jax

    @jax.custom_gradient
    def square(x):  # RULE
        return x**2, lambda ct: 3 * x * ct

    (found,) = model(lambda p: square(p["b"]).sum(), b=base()["b"]).rules()
    assert (found.kind, found.path, [found.line]) == (
        "custom_gradient",
        __file__,
        marked(test_custom_gradient, "# RULE"),
    )
    assert (found.name, found.error) == ("square", pytest.approx(0.5))


def test_where_the_primal_has_no_derivative_nothing_is_said():
    """A rule is often there to avoid a singularity: those elements are not its fault."""
    import jax
    import jax.numpy as jnp

    def safe(factor):
        @jax.custom_vjp
        def root(x):
            return jnp.sqrt(x)

        def backward(x, ct):
            return (factor * ct * jnp.where(x > 0, 0.5 / jnp.sqrt(jnp.where(x > 0, x, 1)), 0),)

        root.defvjp(lambda x: (root(x), x), backward)
        return lambda p: root(p["x"]).sum()

    assert model(safe(1.0), x=np.array([0.0, 1.0, 2.0])).rules()[0].error < 1e-12
    assert model(safe(1.5), x=np.array([0.0, 1.0, 2.0])).rules()[0].error == pytest.approx(0.5)
    assert math.isnan(model(safe(1.5), x=np.zeros(3)).rules()[0].error)
    assert math.isinf(model(safe(np.nan), x=np.ones(3)).rules()[0].error)


def test_what_hardly_matters_is_not_measured_by_itself():
    """The length of a unit vector does not depend on its input, up to rounding: two roundings are not an error."""
    import jax
    import jax.numpy as jnp

    def total(slope):
        @jax.custom_vjp
        def mine(x):
            return ((x / jnp.sqrt((x**2).sum())) ** 2).sum()

        mine.defvjp(lambda x: (mine(x), x), lambda x, ct: (slope * ct * x,))
        return lambda p: mine(p["b"])

    assert model(total(0.0), b=base()["b"]).rules()[0].error < 1e-6
    assert model(total(1.0), b=base()["b"]).rules()[0].error > 0.9


def test_what_cannot_be_taken_apart_is_not_replaced():
    import jax
    from jax.sharding import AxisType, PartitionSpec

    rule = scaled_sin(2.0)

    def loss(p):
        mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
        spec = PartitionSpec("i")
        return jax.shard_map(rule, mesh=mesh, in_specs=spec, out_specs=spec)(p["b"]).sum()

    tested = model(loss, b=base()["b"])
    (found,) = tested.rules()
    assert math.isnan(found.error)
    assert tested.replacing([found]) is None


def test_random_keys_pass_through_a_rule():
    import jax

    @jax.custom_vjp
    def noisy(x, k):
        return x * jax.random.normal(k, x.shape, x.dtype)

    noisy.defvjp(lambda x, k: (noisy(x, k), k), lambda k, ct: (2 * ct * jax.random.normal(k, ct.shape, ct.dtype), None))

    def loss(p):
        def step(h, k):
            return noisy(h, k), None

        return jax.lax.scan(step, p["b"], jax.random.split(jax.random.key(0), 4))[0].sum()

    (found,) = model(loss, b=base()["b"]).rules()
    assert (found.executions, found.error) == (4, pytest.approx(1.0))


def test_a_kernel():
    """Pallas, interpreted: its kernel is the primal."""
    import jax
    from jax.experimental import pallas

    def kernel(x, out):
        out[...] = x[...] * x[...]

    def loss(factor):
        @jax.custom_vjp
        def square(x):
            return pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)

        square.defvjp(lambda x: (square(x), x), lambda x, ct: (factor * 2 * x * ct,))
        return lambda p: square(p["b"]).sum()

    assert model(loss(1.0), b=base()["b"]).rules()[0].error < 1e-8
    assert model(loss(1.5), b=base()["b"]).rules()[0].error == pytest.approx(0.5, abs=1e-8)
