"""Where the gradient of a JAX program stops being finite: the operation and its line."""

from __future__ import annotations

import numpy as np
import pytest

from gradaudit.backends import registry
from tests import conftest
from tests.backends.cutting import marked

#: Collected where jax is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "jax" in conftest.tested()


def model(function, **parameters):
    return registry.get("jax").function_model(function, parameters)


def where_sqrt(jnp, x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()  # HERE


def where_log(jnp, x):
    return jnp.where(x > 0, jnp.log(x), 0.0).sum()  # HERE


def where_division(jnp, x):
    inverse = 1 / x  # HERE
    return jnp.where(x > 0, inverse, 0.0).sum()


def plain_sqrt(jnp, x):
    return (jnp.sqrt(x) * 2).sum()  # HERE


def norm(jnp, x):
    return jnp.linalg.norm(x) + (x**2).sum()  # HERE


def second_norm(jnp, x):
    """The first call is traced and cached; the second is at fault."""
    first = jnp.linalg.norm(x + 1)
    return first + jnp.linalg.norm(x)  # HERE


def standard_deviation(jnp, x):
    return jnp.std(x)  # HERE


def angle(jnp, x):
    return jnp.arctan2(x, 2 * x).sum()  # HERE


def root(jnp, x):
    return (x**0.5).sum()  # HERE


def power(jnp, x):
    return jnp.power(x, x).sum()  # HERE


def arccos(jnp, x):
    return jnp.arccos(1 - x).sum()  # HERE


def entropy(jnp, x):
    return -(x * jnp.log(x)).sum()  # HERE


def overflow(jnp, x):
    """What turns NaN is the product, by 0 * inf; what made the inf is to be named."""
    big = jnp.exp(1000 + x)  # HERE
    return jnp.where(x > 1, big * jnp.sin(x + 1), x).sum()


def overflow_far_away(jnp, x):
    big = jnp.exp(1000 + x)  # HERE
    bigger = (3 * big + 1).reshape(-1)
    return jnp.where(x > 1, bigger * jnp.sin(x + 1), x).sum()


def in_nested_jit(jnp, x):
    import jax

    @jax.jit
    def outer(x):
        @jax.jit
        def inner(x):
            return jnp.sqrt(x) + 1  # HERE

        return inner(x) * jnp.cos(x)

    return outer(2 * x).sum()


def in_checkpoint(jnp, x):
    import jax

    return jax.checkpoint(lambda x: jnp.sin(jnp.sqrt(x)))(x).sum()  # HERE


def in_branch(jnp, x):
    import jax

    def taken(x):
        return jnp.sqrt(x) + x  # HERE

    return jax.lax.cond(x[0] > 1, jnp.log, taken, x).sum()


def in_vmap(jnp, x):
    import jax

    return jax.vmap(jnp.linalg.norm)(jnp.stack([x, x + 1])).sum()  # HERE


def in_scan_in_jit(jnp, x):
    import jax

    @jax.jit
    def loss(x):
        def step(h, t):
            h = h + jnp.where(t > 3, t, jnp.sqrt(h * jnp.abs(t - 2)))  # HERE
            return h, jnp.sin(h)

        return jax.lax.scan(step, x, jnp.arange(6, dtype=x.dtype))[1].sum()

    return loss(x + 1 - 1)


def in_reversed_nested_scans(jnp, x):
    import jax

    def inner(h, t):
        return jnp.where(t > 0, h * 2 + t, jnp.log(h)), None  # HERE

    def outer(h, t):
        return jnp.where(t < 4, jax.lax.scan(inner, h, jnp.arange(3.0).astype(x.dtype) + t)[0], h), t

    return jax.lax.scan(outer, x, jnp.arange(6, dtype=x.dtype), reverse=True)[0].sum()


def overflow_in_an_earlier_step(jnp, x):
    import jax

    def step(h, t):
        h = jnp.exp(h + jnp.where(t == 1, 1000, 0))  # HERE
        return h, None

    big = jax.lax.scan(step, x, jnp.arange(4))[0]
    return jnp.where(x > 1, big * x, x).sum()


def overflow_within_a_scan(jnp, x):
    import jax

    def step(h, t):
        big, s = h
        s = jnp.where(t < 3, s + x, jnp.where(x > 1, big * s, s))
        big = jnp.square(big) * (1 + x)  # HERE
        return (big, s), None

    return jax.lax.scan(step, (x + 1e60, x), jnp.arange(6))[0][1].sum()


def overflow_before_a_scan(jnp, x):
    import jax

    big = jnp.exp(1000 + x)  # HERE

    @jax.jit
    def loss(big, x):
        return jax.lax.scan(lambda h, _: (jnp.where(x > 1, h * big, h), None), x, None, length=3)[0].sum()

    return loss(big, x)


def overflow_before_a_branch(jnp, x):
    import jax

    big = jnp.exp(1000 + x)  # HERE

    def taken(small, big):
        return jnp.where(small > 1, big * small, small)

    return jax.lax.cond(x[0] > 9, lambda small, big: small, taken, x, big).sum()


#: Program to operation and whether its own value is not finite.
_ALL = {
    where_sqrt: ("sqrt", False),
    where_log: ("log", True),
    where_division: ("div", True),
    plain_sqrt: ("sqrt", False),
    norm: ("norm", False),
    second_norm: ("norm", False),
    standard_deviation: ("std", False),
    angle: ("arctan2", False),
    root: ("pow", False),
    power: ("pow", False),
    arccos: ("arccos", False),
    entropy: ("log", True),
    overflow: ("exp", True),
    overflow_far_away: ("exp", True),
    in_nested_jit: ("sqrt", False),
    in_checkpoint: ("sqrt", False),
    in_branch: ("sqrt", False),
    in_vmap: ("norm", False),
    in_scan_in_jit: ("sqrt", False),
    in_reversed_nested_scans: ("log", True),
    overflow_in_an_earlier_step: ("exp", True),
    overflow_within_a_scan: ("square", True),
    overflow_before_a_scan: ("exp", True),
    overflow_before_a_branch: ("exp", True),
}
PROGRAMS = {f.__name__: f for f in _ALL}
EXPECTED = {f.__name__: e for f, e in _ALL.items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_operation_and_its_line(name):
    import jax.numpy as jnp

    tested = model(lambda p: PROGRAMS[name](jnp, p["x"]), x=np.zeros(3))
    assert not np.isfinite(tested.value_and_grad(tested.parameters())[1]["x"]).all()
    origin = tested.origin()
    assert (origin.operation, origin.forward) == EXPECTED[name]
    assert (origin.path, [origin.line]) == (__file__, marked(PROGRAMS[name], "# HERE"))
    assert origin.function.startswith(name)


@pytest.mark.parametrize("name", ["where_sqrt", "in_scan_in_jit", "norm"])
@pytest.mark.parametrize("jit", [True, False])
def test_in_single_precision(name, jit):
    import jax.numpy as jnp

    tested = registry.get("jax").function_model(
        lambda p: PROGRAMS[name](jnp, p["x"]), {"x": np.zeros(3, np.float32)}, jit=jit
    )
    origin = tested.origin()
    assert (origin.operation, [origin.line]) == (EXPECTED[name][0], marked(PROGRAMS[name], "# HERE"))


@pytest.mark.parametrize("name", [n for n in PROGRAMS if not n.startswith("overflow") and n != "in_scan_in_jit"])
def test_elsewhere_nothing_is_named(name):
    import jax.numpy as jnp

    tested = model(lambda p: PROGRAMS[name](jnp, p["x"]), x=np.array([0.5, 0.6, 0.7]))
    assert np.isfinite(tested.value_and_grad(tested.parameters())[1]["x"]).all()
    assert tested.origin() is None


def test_a_finite_gradient_has_no_origin():
    import jax
    import jax.numpy as jnp

    def doubly_safe(p):
        x = p["x"]
        return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0).sum()

    def products(p):
        return jnp.cumprod(p["x"]).sum() + jnp.prod(p["x"]) + jnp.hypot(p["x"], p["x"]).sum()

    def cut(p):
        return (jnp.sqrt(jax.lax.stop_gradient(p["x"])) + p["x"]).sum()

    def constant(p):
        return (jnp.sqrt(jnp.zeros(3)) * p["x"]).sum() + jnp.where(p["x"] > 1, -jnp.inf, p["x"]).sum()

    def counter(p):
        """The root at step 0 is not of anything that depends on the parameter."""

        def step(carry, _):
            t, h = carry
            return (t + 1, h + p["x"] * jnp.sqrt(t)), None

        return jax.lax.scan(step, (0.0, p["x"]), None, length=3)[0][1].sum()

    def swallowed(p):
        """An infinite cotangent that a branch not taken throws away."""
        return jnp.sqrt(jnp.where(p["x"] > 1, p["x"], 0.0) * 0.0 + jnp.where(p["x"] > 1, p["x"], 4.0)).sum()

    for loss in (doubly_safe, products, cut, constant, counter, swallowed):
        tested = model(loss, x=np.zeros(3))
        assert np.isfinite(tested.value_and_grad(tested.parameters())[1]["x"]).all(), loss.__name__
        assert tested.origin() is None, loss.__name__


def test_only_what_reaches_the_gradient_is_named():
    """One infinite cotangent is thrown away later on, the other is not."""
    import jax.numpy as jnp

    def loss(p):
        harmless = jnp.sqrt(jnp.where(p["x"] > 1, p["x"], 0.0))
        return (jnp.sqrt(p["x"]) + harmless).sum()  # HERE

    origin = model(loss, x=np.zeros(3)).origin()
    assert [origin.line] == marked(loss, "# HERE")


def test_of_two_the_later_one_in_the_program():
    """It is the first in the backward pass, and hands its infinity on."""
    import jax.numpy as jnp

    def loss(p):
        h = jnp.sqrt(p["x"])
        return (h**0.5).sum()  # HERE

    origin = model(loss, x=np.zeros(3)).origin()
    assert (origin.operation, [origin.line]) == ("pow", marked(loss, "# HERE"))


def test_of_two_in_one_step_the_one_that_depends_on_parameters():
    import jax
    import jax.numpy as jnp

    def loss(p):
        def step(carry, _):
            t, h = carry
            h = jnp.sqrt(h)  # HERE
            h = h + 1 + jnp.sqrt(t)
            return (t + 1, h), None

        return jax.lax.scan(step, (0.0, p["x"]), None, length=3)[0][1].sum()

    origin = model(loss, x=np.zeros(3)).origin()
    assert [origin.line] == marked(loss, "# HERE")


def test_data_that_are_not_finite():
    """Nothing made them so: the operation that they enter is named."""
    import jax.numpy as jnp

    def loss(p):
        return (p["x"] * jnp.array([1.0, jnp.nan, 2.0])).sum()  # HERE

    for x in (np.zeros(3), np.array([0.0, np.inf, 1.0])):
        origin = model(loss, x=x).origin()
        assert (origin.operation, [origin.line], origin.forward) == ("mul", marked(loss, "# HERE"), True)


def test_a_rule_of_ones_own():
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def sinc(x):
        return jnp.where(x == 0, 1.0, jnp.sin(x) / jnp.where(x == 0, 1.0, x))

    sinc.defvjp(lambda x: (sinc(x), x), lambda x, ct: (ct * (jnp.cos(x) - sinc(x)) / x,))

    def loss(p):
        return sinc(p["x"]).sum()  # HERE

    origin = model(loss, x=np.zeros(3)).origin()
    assert (origin.operation, [origin.line], origin.forward) == ("sinc", marked(loss, "# HERE"), False)
    assert model(loss, x=np.ones(3)).origin() is None


def test_what_cannot_be_traced_has_no_known_origin():
    import jax.numpy as jnp

    def loss(p):
        return jnp.sqrt(p["x"]).sum() if p["x"][0] < 1 else p["x"].sum()

    tested = model(loss, x=np.zeros(3))
    assert not np.isfinite(tested.value_and_grad(tested.parameters())[1]["x"]).any()
    assert tested.origin() is None


def test_one_late_step_of_many():
    import jax
    import jax.numpy as jnp

    def loss(p):
        def step(h, t):
            h = jnp.where(t == 7, jnp.sqrt(h - h), jnp.tanh(h + p["x"]))  # HERE
            return h, (h**2).sum()

        return jax.lax.scan(step, p["x"], jnp.arange(5000))[1].sum()

    origin = model(loss, x=np.ones(3)).origin()
    assert (origin.operation, [origin.line]) == ("sqrt", marked(loss, "# HERE"))
