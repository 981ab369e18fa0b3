"""Hand-written derivatives in TensorFlow losses: compared with their primals, replaced; nothing stays redirected."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from gradaudit.backends import registry
from gradaudit.protocols import SupportsRules
from tests import conftest
from tests.backends.cutting import marked
from tests.backends.test_tensorflow_cuts import distance, gradient, numeric, patched, same

#: Collected where TensorFlow is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "tensorflow" in conftest.tested()

W = np.random.default_rng(7).normal(0, 0.5, (3, 3))
H0 = np.array([0.3, -0.2, 0.5])
N_LAYERS = 6


@pytest.fixture
def tf():
    import tensorflow as tf

    return tf


def model(function, dtype="float64"):
    return registry.get("tensorflow").function_model(function, {"W": W.astype(dtype)})


def scaled_tanh(factor):
    """Right for a factor of 1; the rule's error is ``factor - 1``."""
    import tensorflow as tf

    @tf.custom_gradient
    def scaled(x):
        y = tf.tanh(x)

        def grad(g):
            return factor * g * (1 - y**2)

        return y, grad

    return scaled


def layers(functions):
    import tensorflow as tf

    def loss(p):
        h = tf.constant(H0, p["W"].dtype)
        for function in functions:
            h = function(tf.linalg.matvec(p["W"], h) + 0.1)
        return tf.reduce_sum(h**2)

    return loss


def whole():
    import tensorflow as tf

    return gradient(model(layers([tf.tanh] * N_LAYERS)))


def check_proven(m, rules):
    """Replaced, the gradient is that of the loss, and was not before; the loss is the same."""
    replacing = m.replacing(rules)
    true = numeric(m)
    assert distance(gradient(m), true) > 1e-3
    assert distance(gradient(replacing), true) < 1e-8
    assert replacing.loss(m.parameters()) == pytest.approx(m.loss(m.parameters()), rel=1e-14)


def check_right(m, executions=None):
    rules = m.rules()
    assert rules
    assert [rule.error < 1e-9 for rule in rules] == [True] * len(rules)
    if executions is not None:
        assert [rule.executions for rule in rules] == executions
    assert distance(gradient(m.replacing(rules)), gradient(m)) < 1e-9


def test_the_model_supports_rules():
    assert isinstance(model(layers([])), SupportsRules)


def test_the_third_of_six_layers(tf):
    def named(name, factor):
        @tf.custom_gradient
        def function(x):
            y = tf.tanh(x)
            return y, lambda g: factor * g * (1 - y**2)

        function._f.__qualname__ = name
        return function

    m = model(layers([named(f"layer{i}", 1.1 if i == 3 else 1.0) for i in range(1, 7)]))
    rules = m.rules()
    assert [rule.name for rule in rules] == [f"layer{i}" for i in range(1, 7)]
    errors = [rule.error for rule in rules]
    assert errors[2] == pytest.approx(0.1, rel=1e-12)
    assert max(errors[:2] + errors[3:]) < 1e-14
    assert {(rule.kind, rule.path, rule.executions, rule.library) for rule in rules} == {
        ("custom_gradient", __file__, 1, False)
    }
    check_proven(m, [rules[2]])
    assert distance(gradient(m.replacing([rules[2]])), whole()) < 1e-13
    assert distance(gradient(m.replacing([rules[1]])), gradient(m)) < 1e-13


def test_the_line_is_that_of_the_inner_function(tf):
    @tf.custom_gradient
    def doubled(x):
        @tf.autograph.experimental.do_not_convert
        def grad(g):  # RULE
            return 2 * g

        return 2 * x, grad

    @tf.custom_gradient
    def tripled(x):
        return 3 * x, lambda g: 3 * g  # RULE

    class Times:
        def __init__(self, n):
            self.n = n

        def __call__(self, g):  # RULE
            return self.n * g

    @tf.custom_gradient
    def quadrupled(x):
        return 4 * x, Times(4)

    @tf.custom_gradient
    def same(x):  # RULE
        return tf.abs(x), abs

    m = model(lambda p: -tf.reduce_sum(same(quadrupled(doubled(tripled(tf.abs(p["W"])))) ** 2)))
    first, second, third, fourth = m.rules()
    assert [r.name for r in (first, second, third, fourth)] == ["tripled", "doubled", "quadrupled", "same"]
    places = [r.line for r in (second, first, third, fourth)]
    assert places == [marked(f, "# RULE")[0] for f in (doubled._f, tripled._f, Times.__call__, same._f)]
    assert [r.error < 1e-9 for r in (first, second, third)] == [True] * 3
    assert fourth.error == 2.0  # abs gives the gradient of abs another sign


def test_one_wrong_of_two(tf):
    right, wrong = scaled_tanh(1.0), scaled_tanh(1.0)

    @tf.custom_gradient
    def off(x):
        return tf.sin(x), lambda g: g * tf.cos(x) * tf.cos(x)

    m = model(lambda p: tf.reduce_sum(right(off(wrong(p["W"])))))
    first, second = m.rules()
    assert (first.name, first.executions, second.name, second.executions) == ("scaled", 2, "off", 1)
    assert first.error < 1e-14
    assert 0.05 < second.error < 0.5
    check_proven(m, [second])


def test_made_by_one_line_and_told_apart_by_what_they_close_over():
    """The third is neither the first, nor the middle, nor the last execution."""
    m = model(layers([scaled_tanh(0.5 if i == 2 else 1.0) for i in range(N_LAYERS)]))
    (rule,) = m.rules()
    assert (rule.name, rule.executions) == ("scaled", N_LAYERS)
    assert rule.error == pytest.approx(0.5, rel=1e-12)
    check_proven(m, [rule])


def test_made_by_one_line_and_told_apart_by_their_objects(tf):
    class Layer:
        def __init__(self, factor):
            self.factor = factor

        @tf.custom_gradient
        def squared(self, x):
            return x**2, lambda g: 2 * self.factor * g * x

    these = [Layer(0.5 if i == 2 else 1.0) for i in range(N_LAYERS)]
    m = model(layers([one.squared for one in these]))
    (rule,) = m.rules()
    assert (rule.name, rule.executions) == ("Layer.squared", N_LAYERS)
    assert rule.error == pytest.approx(0.5, rel=1e-12)
    check_proven(m, [rule])


def test_many_made_by_one_line(tf):
    """Each of its own make: some are compared, among them the last of all."""
    calls = []

    def one(number):
        @tf.custom_gradient
        def function(x):
            calls.append(number)
            return tf.tanh(x), lambda g: (0.5 if number == 99 else 1.0) * g * (1 - tf.tanh(x) ** 2)

        return function

    made = [one(i) for i in range(100)]
    (rule,) = model(layers(made)).rules()
    assert (rule.executions, rule.error) == (100, pytest.approx(0.5, rel=1e-12))
    assert len(calls) < 400


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_wrong_for_one_of_three_inputs(tf, wrong):
    @tf.custom_gradient
    def product(x, n, y, z, *, twice):
        def grad(g):
            found = [n * g * y * z, n * g * x * z, n * g * x * y]
            found[wrong] *= 1.25
            return (found[0], None, *found[1:])

        return n * x * y * z if twice else None, grad

    m = model(lambda p: tf.reduce_sum(product(p["W"], 2, tf.sin(p["W"]), p["W"] + 1, twice=True)))
    (rule,) = m.rules()
    assert (rule.name, rule.argument) == ("product", wrong)
    assert rule.error == pytest.approx(0.25, rel=1e-12)
    check_proven(m, [rule])


def test_a_tensor_passed_by_name_has_no_gradient_in_tensorflow(tf):
    @tf.custom_gradient
    def product(x, y):
        return x * y, lambda g: g * y

    m = model(lambda p: tf.reduce_sum(product(p["W"], y=tf.sin(p["W"]))))
    (rule,) = m.rules()
    assert (rule.error, rule.argument) == (1.0, 1)
    check_proven(m, [rule])


def test_an_argument_that_depends_on_no_parameter_is_not_compared(tf):
    """Its gradient may be anything: nobody uses it."""

    @tf.custom_gradient
    def weighted(mask, x):
        return mask * x, lambda g: (None, mask * g)

    @tf.custom_gradient
    def careless(mask, x):
        return mask * x, lambda g: (tf.zeros_like(mask), 0.5 * mask * g)

    mask = tf.constant([1.0, 2.0, 0.0], "float64")
    check_right(model(lambda p: tf.reduce_sum(weighted(mask, p["W"]) ** 2)), [1])
    (rule,) = model(lambda p: tf.reduce_sum(careless(mask, p["W"]))).rules()
    assert (rule.error, rule.argument) == (pytest.approx(0.5, rel=1e-12), 1)


def test_a_rule_on_constants_is_not_listed(tf):
    rule = scaled_tanh(3.0)
    assert model(lambda p: tf.reduce_sum(p["W"] * rule(tf.constant(H0)))).rules() == ()


def test_one_tensor_passed_twice(tf):
    @tf.custom_gradient
    def product(x, y):
        return x * y, lambda g: (g * y, g * x)

    check_right(model(lambda p: tf.reduce_sum(product(p["W"], p["W"]) ** 2)), [1])

    @tf.custom_gradient
    def first_only(x, y):
        return x * y, lambda g: (2 * g * y, 0 * g)

    # the sum is right, and neither argument is
    m = model(lambda p: tf.reduce_sum(first_only(p["W"], p["W"]) ** 2))
    (rule,) = m.rules()
    assert rule.error == pytest.approx(1.0, rel=1e-12)
    assert distance(gradient(m), numeric(m)) < 1e-8


def test_several_results_and_nested_arguments(tf):
    @tf.custom_gradient
    def both(pair, n):
        x, y = pair["x"], pair["y"]

        def grad(g_sum, g_product):
            return g_sum + g_product * y, g_sum + g_product * x, None

        return (x + y, x * y), grad

    def loss(p):
        one, other = both({"x": p["W"], "y": tf.exp(p["W"])}, 3)
        return tf.reduce_sum(one * other)

    check_right(model(loss), [1])

    @tf.custom_gradient
    def swapped(x, y):
        return (x + y, x * y), lambda g, h: (g + h * x, g + h * y)

    (rule,) = model(lambda p: tf.reduce_sum(swapped(p["W"], tf.exp(p["W"]))[1])).rules()
    assert rule.error > 0.1


def clipped(limit):
    import tensorflow as tf

    @tf.custom_gradient
    def identity(x):
        return tf.identity(x), lambda g: tf.clip_by_value(g, -limit, limit)

    return identity


def test_a_rule_is_given_the_gradients_that_it_saw(tf):
    """Those of the loss are near 50: clipped at 10 they are wrong, at 1000 untouched, whatever others would be."""

    def loss(limit):
        identity = clipped(limit)
        return model(lambda p: tf.reduce_sum(50 * identity(p["W"] + 1.0)))

    (rule,) = loss(10.0).rules()
    assert rule.error == pytest.approx(0.8, rel=1e-12)
    check_proven(loss(10.0), [rule])
    check_right(loss(1000.0))

    def faint(p):
        return tf.reduce_sum(1e-3 * clipped(0.01)(p["W"]))

    check_right(model(faint))


def test_a_rule_behind_a_zero_is_compared_all_the_same(tf):
    rule = scaled_tanh(1.5)
    (found,) = model(lambda p: tf.reduce_sum(0 * rule(p["W"]) + p["W"])).rules()
    assert found.error == pytest.approx(0.5, rel=1e-12)


def test_what_a_primal_takes_from_around_it(tf):
    """TensorFlow says nothing, and gives no gradient."""

    def loss(p):
        w = tf.exp(p["W"])

        @tf.custom_gradient
        def times_w(x):
            return w * x, lambda g: w * g

        return tf.reduce_sum(times_w(p["W"] + 1) ** 2)

    m = model(loss)
    (rule,) = m.rules()
    assert (rule.name, rule.error, rule.argument) == ("times_w", 1.0, 1)
    check_proven(m, [rule])

    def constant(p):
        w = tf.stop_gradient(tf.exp(p["W"]))

        @tf.custom_gradient
        def times_w(x):
            return w * x, lambda g: w * g

        return tf.reduce_sum(times_w(p["W"] + 1) ** 2)

    check_right(model(constant), [1])


def test_recomputed(tf):
    """A rule of TensorFlow for a function of the user, which gives no gradient to what the function closes over."""

    def loss(p):
        block = tf.recompute_grad(lambda h, w: tf.tanh(tf.linalg.matvec(w, h)))
        h = tf.constant(H0, p["W"].dtype)
        for _ in range(3):
            h = block(h, p["W"])
        return tf.reduce_sum(h**2)

    def closing(p):
        block = tf.recompute_grad(lambda h: tf.tanh(tf.linalg.matvec(p["W"], h)))
        h = tf.linalg.matvec(p["W"], tf.constant(H0, p["W"].dtype))
        for _ in range(3):
            h = block(h)  # RULE
        return tf.reduce_sum(h**2)

    check_right(model(loss), [3])
    m = model(closing)
    (rule,) = m.rules()
    assert (rule.kind, rule.path, [rule.line], rule.library) == (
        "recompute_grad",
        __file__,
        marked(closing, "# RULE"),
        False,
    )
    assert (rule.error, rule.argument) == (1.0, 1)
    check_proven(m, [rule])


def test_passed_through(tf):
    def loss(p):
        rounded = tf.grad_pass_through(tf.round)(p["W"] * 3)  # RULE
        return tf.reduce_sum(rounded * p["W"])

    m = model(loss)
    (rule,) = m.rules()
    assert (rule.kind, rule.name, [rule.line], rule.library) == (
        "grad_pass_through",
        "round",
        marked(loss, "# RULE"),
        False,
    )
    assert rule.error == 1.0
    check_proven(m, [rule])


def test_a_rule_in_a_primal_is_seen_through(tf):
    inner = scaled_tanh(2.0)

    @tf.custom_gradient
    def outer(x):
        return inner(x) ** 2, lambda g: 2 * g * tf.tanh(x) * (1 - tf.tanh(x) ** 2)

    check_right(model(lambda p: tf.reduce_sum(outer(p["W"]))), [1])

    @tf.custom_gradient
    def by_tape(x):
        """Its rule is made of the wrong one within."""
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = inner(x)
        slope = tape.gradient(y, x)
        return y, lambda g: g * slope

    m = model(lambda p: tf.reduce_sum(by_tape(p["W"])))
    (rule,) = m.rules()
    assert (rule.name, rule.error) == ("by_tape", pytest.approx(1.0, rel=1e-12))
    check_proven(m, [rule])


def test_a_cut_in_a_primal_is_seen_through(tf):
    @tf.custom_gradient
    def square(x):
        return tf.stop_gradient(x) * x, lambda g: 2 * x * g

    check_right(model(lambda p: tf.reduce_sum(square(p["W"]) ** 2)), [1])


def test_a_value_that_leaves_the_primal(tf):
    """By differences: the tape would see half of the derivative, or none."""

    @tf.custom_gradient
    def square(x):
        return x * x.numpy(), lambda g: 2 * x * g

    @tf.custom_gradient
    def exp(x):
        y = tf.numpy_function(np.exp, [x], x.dtype)
        return tf.ensure_shape(y, x.shape), lambda g: g * y

    @tf.custom_gradient
    def off(x):
        y = tf.numpy_function(np.exp, [x], x.dtype)
        return tf.ensure_shape(y, x.shape), lambda g: 1.5 * g * y

    for right in (square, exp):
        (rule,) = model(lambda p, right=right: tf.reduce_sum(right(p["W"]))).rules()
        assert rule.error < 1e-9
    (rule,) = model(lambda p: tf.reduce_sum(off(p["W"]))).rules()
    assert rule.error == pytest.approx(0.5, rel=1e-9)


def test_a_straight_through_rule_is_not_the_derivative(tf):
    @tf.custom_gradient
    def rounded(x):
        return tf.round(x), lambda g: g

    @tf.custom_gradient
    def honest(x):
        return tf.round(x), tf.zeros_like

    m = model(lambda p: tf.reduce_sum(rounded(p["W"]) * p["W"]))
    (rule,) = m.rules()
    assert rule.error == pytest.approx(1.0)
    check_proven(m, [rule])
    (rule,) = model(lambda p: tf.reduce_sum(honest(p["W"]) * p["W"])).rules()
    assert rule.error == 0.0


def test_a_primal_that_can_be_compared_with_nothing(tf):
    @tf.custom_gradient
    def noise(x):
        return x + tf.constant(np.random.default_rng().standard_normal(x.shape)) / x.numpy(), lambda g: g

    (rule,) = model(lambda p: tf.reduce_sum(noise(p["W"]))).rules()
    assert np.isnan(rule.error)


def test_a_rule_that_is_better_than_the_derivative_of_its_primal(tf):
    """Differences tell so: the tape gives NaN at 0, and 0 for a product with a 0 (tensorflow#119430)."""

    @tf.custom_gradient
    def sinc(x):
        y = tf.where(x != 0, tf.sin(x) / x, 1.0)
        safe = tf.where(x != 0, x, 1.0)
        return y, lambda g: g * tf.where(x != 0, (tf.cos(safe) - y) / safe, 0.0)

    @tf.custom_gradient
    def product(x):
        others = tf.reverse(x, [0])  # of two
        return tf.math.cumprod(x)[-1], lambda g: g * others

    def plain(x):
        return tf.where(x != 0, tf.sin(x) / x, 1.0)

    x = tf.constant([0.0, 1.5], "float64")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        one, other = plain(x), tf.math.cumprod(x)[-1]
    assert np.isnan(tape.gradient(one, x)[0])
    assert list(tape.gradient(other, x)) == [0.0, 0.0]

    for rule in (sinc, product):
        m = registry.get("tensorflow").function_model(lambda p, rule=rule: tf.reduce_sum(rule(p["x"])), {"x": x})
        (found,) = m.rules()
        assert found.error < 1e-9


def test_a_primal_that_overflows(tf):
    """In single precision; in double it can be compared, up to a point."""

    @tf.custom_gradient
    def log1pexp(x):
        e = tf.exp(x)
        return tf.math.log(1 + e), lambda g: g * (1 - 1 / (1 + e))

    def at(offset, dtype):
        (found,) = model(lambda p: tf.reduce_sum(1 / log1pexp(offset + p["W"])), dtype).rules()
        return found.error

    assert at(100.0, "float64") < 1e-9
    assert at(100.0, "float32") < 1e-6
    assert np.isnan(at(800.0, "float64"))


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_variables_inside(tf, factor):
    scale = tf.Variable([2.0, 3.0, 4.0], dtype="float64")

    @tf.custom_gradient
    def scaled(x):
        def grad(g, variables):
            return factor * g * scale, [tf.reduce_sum(g * x, 0)] * len(variables)

        return scale * x, grad

    m = model(lambda p: tf.reduce_sum(scaled(p["W"]) ** 2))
    (rule,) = m.rules()
    assert rule.error == pytest.approx(factor - 1, abs=1e-12)
    if factor != 1:
        check_proven(m, [rule])


def test_a_method(tf):
    class Layer:
        @tf.custom_gradient
        def squared(self, x):
            return x**2, lambda g: 3 * g * x

    layer = Layer()
    m = model(lambda p: tf.reduce_sum(layer.squared(p["W"])))
    (rule,) = m.rules()
    assert (rule.name, rule.error) == ("Layer.squared", pytest.approx(0.5, rel=1e-12))
    check_proven(m, [rule])


@pytest.mark.parametrize("written", ["for", "while_loop", "cond", "map_fn"])
def test_in_a_tf_function(tf, written):
    rule = scaled_tanh(1.2)

    def in_for(p):
        h = tf.constant(H0, p["W"].dtype)
        for _ in tf.range(20):
            h = rule(tf.linalg.matvec(p["W"], h) + 0.1)
        return tf.reduce_sum(h**2)

    def in_while_loop(p):
        h = tf.constant(H0, p["W"].dtype)
        _, h = tf.while_loop(lambda i, _: i < 20, lambda i, h: (i + 1, rule(tf.linalg.matvec(p["W"], h) + 0.1)), (0, h))
        return tf.reduce_sum(h**2)

    def in_cond(p):
        return tf.cond(p["W"][0, 0] < 9, lambda: tf.reduce_sum(rule(p["W"])), lambda: tf.reduce_sum(p["W"]))

    def in_map_fn(p):
        return tf.reduce_sum(tf.map_fn(rule, p["W"]))

    function, executions = {
        "for": (in_for, 19 + 1),
        "while_loop": (in_while_loop, 20),
        "cond": (in_cond, 1),
        "map_fn": (in_map_fn, 3),
    }[written]
    m = model(tf.function(function))
    m.loss(m.parameters())  # traced already
    (found,) = m.rules()
    assert (found.name, found.executions) == ("scaled", executions)
    assert found.error == pytest.approx(0.2, rel=1e-12)
    check_proven(m, [found])


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_in_a_layer_of_keras(tf, factor):
    import keras

    class Swish(keras.layers.Layer):
        def call(self, x):
            @keras.ops.custom_gradient
            def swish(x):
                s = tf.sigmoid(x)

                def grad(*args, upstream=None):  # RULE
                    (g,) = args
                    return factor * g * (s + x * s * (1 - s))

                return x * s, grad

            return swish(x)

    net = keras.Sequential([keras.layers.Dense(3, dtype="float64"), Swish(dtype="float64"), Swish(dtype="float64")])
    net.build((None, 3))
    m = model(lambda p: tf.reduce_sum(net(p["W"]) ** 2))
    (rule,) = m.rules()
    assert (rule.path, [rule.line], rule.library) == (__file__, marked(Swish, "# RULE"), False)
    assert (rule.name, rule.executions) == ("swish", 2)
    assert rule.error == pytest.approx(factor - 1, abs=1e-12)
    if factor != 1:
        check_proven(m, [rule])


def test_rules_in_a_library_are_marked(tf):
    (rule,) = model(lambda p: tf.reduce_sum(tf.nn.silu(p["W"]))).rules()
    assert rule.library
    assert rule.error < 1e-9


def test_a_program_without_rules_lists_nothing(tf):
    m = model(layers([tf.tanh]))
    assert m.rules() == ()
    (rule,) = model(layers([scaled_tanh(1.0)])).rules()
    assert m.replacing([rule]) is None


def test_a_function_for_graphs_only_lists_nothing(tf):
    loss = layers([scaled_tanh(1.5)])

    @tf.function
    def function(p):
        return tf.reduce_sum(tf.gradients(loss(p), p["W"])[0] ** 2)

    (rule,) = model(loss).rules()
    m = model(function)
    assert m.loss(m.parameters()) > 0
    assert m.rules() == ()
    assert m.replacing([rule]) is None


def test_rules_and_cuts_side_by_side(tf):
    rule = scaled_tanh(1.1)

    def loss(p):
        h = rule(tf.linalg.matvec(p["W"], tf.constant(H0)))
        return tf.reduce_sum(rule(h + tf.stop_gradient(h)))  # CUT

    m = model(loss)
    (found,), (cut,) = m.rules(), m.cuts()
    assert (found.executions, [cut.line]) == (2, marked(loss))

    def uncut(p):
        h = tf.tanh(tf.linalg.matvec(p["W"], tf.constant(H0)))
        return tf.reduce_sum(tf.tanh(h + tf.stop_gradient(h)))

    assert distance(gradient(m.replacing([found])), gradient(model(uncut))) < 1e-13


def test_float32_with_its_twin():
    m = model(layers([scaled_tanh(1.0), scaled_tanh(1.5)]), "float32")
    (rule,) = m.rules()
    assert rule.error == pytest.approx(0.5, rel=1e-5)
    (right,) = model(layers([scaled_tanh(1.0)]), "float32").rules()
    assert right.error < 1e-6
    replacing = m.replacing([rule])
    assert replacing.loss(m.parameters()).dtype == np.float32
    twin = replacing.twin()
    assert twin.twin() is None
    assert twin.loss(twin.parameters()).dtype == np.float64
    assert distance(gradient(twin), numeric(m.twin())) < 1e-7
    assert distance(gradient(replacing), gradient(twin)) < 1e-5


def test_nothing_stays_redirected(tf):
    during = []

    @tf.custom_gradient
    def failing(x):
        def grad(g):
            msg = "the rule's"
            raise ValueError(msg)

        during.append(patched())
        return x**2, grad

    class Interrupted(BaseException):
        pass

    @tf.custom_gradient
    def interrupted(x):
        def grad(g):
            raise Interrupted

        return x**2, grad

    def failing_loss(p):
        failing(p["W"])
        msg = "the loss's"
        raise ValueError(msg)

    before = patched()
    m = model(layers([scaled_tanh(1.5)]))
    m.replacing(m.rules()).value_and_grad(m.parameters())
    assert same(before, patched())
    (rule,) = model(lambda p: tf.reduce_sum(failing(p["W"]))).rules()
    assert np.isnan(rule.error)
    assert same(before, patched())
    assert not any(a is b for a, b in zip(before, during[0], strict=True))
    # a rule that raises is replaced all the same
    m = model(lambda p: tf.reduce_sum(failing(p["W"])))
    np.testing.assert_allclose(gradient(m.replacing(m.rules())), 2 * W)
    assert model(failing_loss).rules() == ()
    assert same(before, patched())
    with pytest.raises(Interrupted):
        model(lambda p: tf.reduce_sum(interrupted(p["W"]))).rules()
    assert same(before, patched())


def test_nothing_is_redirected_where_tensorflow_lacks_a_name(monkeypatch):
    from tensorflow.python.ops import gen_array_ops, script_ops

    m = model(layers([scaled_tanh(1.5)]))
    monkeypatch.delattr(script_ops, "py_func_common")
    before = gen_array_ops.stop_gradient
    assert m.rules() == ()
    assert gen_array_ops.stop_gradient is before


def test_other_threads_are_undisturbed(tf):
    rule, others = scaled_tanh(1.5), []

    def elsewhere():
        x = tf.constant(W)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(rule(x))
        others.append((tape.gradient(y, x).numpy(), tf.function(tf.executing_eagerly)()))

    def function(p):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return tf.reduce_sum(rule(p["W"]) ** 2)

    m = model(function)
    (found,) = m.rules()
    assert found.executions == 1
    check_proven(m, [found])
    assert len(others) > 2
    for of_rule, inside in others:
        np.testing.assert_allclose(of_rule, 1.5 * (1 - np.tanh(W) ** 2), rtol=1e-14)
        assert not inside


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inside(tf, dtype):
    def loss(factor):
        rule = scaled_tanh(factor)
        return model(lambda p: tf.reduce_sum(tf.cast(rule(tf.cast(p["W"], dtype)), p["W"].dtype)))

    (right,), (wrong,) = loss(1.0).rules(), loss(1.5).rules()
    assert right.error < 0.02
    assert wrong.error == pytest.approx(0.5, rel=0.02)


def test_complex_values_inside(tf):
    def loss(factor):
        @tf.custom_gradient
        def square(z):
            return z * z, lambda g: factor * g * 2 * tf.math.conj(z)

        return model(lambda p: tf.reduce_sum(tf.abs(square(tf.complex(p["W"], p["W"] ** 2))) ** 2))

    check_right(loss(1.0), [1])
    (wrong,) = loss(1.5).rules()
    assert wrong.error == pytest.approx(0.5, rel=1e-12)
    check_proven(loss(1.5), [wrong])
