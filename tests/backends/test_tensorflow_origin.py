"""Where the gradient of a TensorFlow loss stops being finite: the line and the operation; in pairs with finite ones."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gradaudit
from gradaudit.backends import registry
from gradaudit.protocols import SupportsOrigin
from tests import conftest
from tests.backends.cutting import marked

#: Collected where TensorFlow is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "tensorflow" in conftest.tested()

X = np.array([0.0, 0.5, 2.0, 3.0])


@pytest.fixture
def tf():
    import tensorflow as tf

    return tf


def model(function, x=X, dtype="float64"):
    return registry.get("tensorflow").function_model(function, {"x": np.asarray(x, dtype)})


def check(m, function, operation, *, forward=False, name=None):
    gradient = m.value_and_grad(m.parameters())[1]["x"]
    assert not np.isfinite(gradient).all()
    found = m.origin()
    assert found is not None
    assert (found.operation, found.path, [found.line]) == (operation, __file__, marked(function, "# NAN"))
    assert (found.function, found.forward) == (name or function.__name__, forward)


def log_under_where(p):
    import tensorflow as tf

    x = p["x"] * 2
    safe = tf.where(x > 0, tf.math.log(x), 0.0)  # NAN
    return tf.reduce_sum(safe + x)


def log_masked_before(p):
    import tensorflow as tf

    x = p["x"] * 2
    safe = tf.math.log(tf.where(x > 0, x, 1.0))
    return tf.reduce_sum(safe + x)


def division_under_where(p):
    import tensorflow as tf

    x = p["x"]
    ratio = (
        tf.sin(x) / x  # NAN
    )
    return tf.reduce_sum(tf.where(x > 0, ratio, 1.0) * x)


def divide_under_where(p):
    import tensorflow as tf

    x = p["x"]
    ratio = tf.divide(1.0, x)  # NAN
    return tf.reduce_sum(tf.where(x > 0, ratio, 1.0))


def norm_at_zero(p):
    import tensorflow as tf

    d = p["x"] - tf.constant(X, p["x"].dtype)
    return 1 + tf.norm(d)  # NAN


def sqrt_at_zero(p):
    import tensorflow as tf

    return tf.reduce_sum(tf.sqrt(tf.square(p["x"])))  # NAN


def root_at_zero(p):
    import tensorflow as tf

    x = p["x"] * 1.0
    y = x**0.5  # NAN
    return tf.reduce_sum(y)


def pow_at_zero(p):
    import tensorflow as tf

    return tf.reduce_sum(tf.pow(p["x"], 0.5))  # NAN


def acos_at_one(p):
    import tensorflow as tf

    return tf.reduce_sum(tf.acos(tf.cos(p["x"])))  # NAN


TRAPS = [
    (log_under_where, "log", True),
    (division_under_where, "div", True),
    (divide_under_where, "divide", True),
    (norm_at_zero, "norm", False),
    (sqrt_at_zero, "sqrt", False),
    (root_at_zero, "pow", False),
    (pow_at_zero, "pow", False),
    (acos_at_one, "acos", False),
]


def test_the_model_supports_origins():
    assert isinstance(model(log_under_where), SupportsOrigin)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("function", "operation", "forward"), TRAPS)
def test_the_trap_is_named(function, operation, forward, dtype):
    check(model(function, dtype=dtype), function, operation, forward=forward)


@pytest.mark.parametrize("function", [trap[0] for trap in TRAPS])
def test_away_from_the_trap_there_is_none(function):
    m = model(function, X + 0.4)
    assert np.isfinite(m.value_and_grad(m.parameters())[1]["x"]).all()
    assert m.origin() is None


def test_masked_before_there_is_none():
    assert model(log_masked_before).origin() is None


def test_a_square_root_at_zero_under_where_is_finite_in_tensorflow(tf):
    def function(p):
        return tf.reduce_sum(tf.where(p["x"] > 0, tf.sqrt(p["x"]), 0.0))

    assert model(function).origin() is None


def test_a_product_with_a_zero_is_finite_in_tensorflow(tf):
    """0 where the derivative is not: wrong, but no NaN."""
    m = model(lambda p: tf.math.cumprod(p["x"])[-1])
    assert m.value_and_grad(m.parameters())[1]["x"][0] == 0
    assert m.origin() is None


def test_not_the_other_operation_that_takes_the_same_value(tf):
    """Its gradient is the sum over both, and the harmless one comes first on the way back."""

    def function(p):
        y = p["x"] + 0.0
        safe = tf.where(y > 0, tf.math.log(y), 0.0)  # NAN
        harmless = tf.square(y)
        return tf.reduce_sum(safe) + tf.reduce_sum(harmless * 2)

    check(model(function), function, "log", forward=True)


def test_the_first_of_two_on_the_way_back(tf):
    """What is infinite after it makes everything before it so, too."""

    def function(p):
        inner = tf.sqrt(tf.square(p["x"]))
        outer = tf.sqrt(inner)  # NAN
        return tf.reduce_sum(outer)

    check(model(function), function, "sqrt")


@pytest.mark.parametrize("written", ["for", "while_loop", "scan", "map_fn", "cond"])
def test_in_a_tf_function(tf, written):
    def step(s, x):
        return s + tf.where(x > 0, tf.math.log(x), 0.0)  # NAN

    def in_for(p):
        s = tf.zeros((), p["x"].dtype)
        for i in tf.range(4):
            s = step(s, p["x"][i])
        return s

    def in_while_loop(p):
        return tf.while_loop(
            lambda i, s: i < 4, lambda i, s: (i + 1, step(s, p["x"][i])), (0, tf.zeros((), "float64"))
        )[1]

    def in_map_fn(p):
        return tf.reduce_sum(tf.map_fn(lambda x: step(0.0, x), p["x"]))

    def in_scan(p):
        return tf.scan(step, p["x"], tf.zeros((), "float64"))[-1]

    def in_cond(p):
        return tf.reduce_sum(tf.cond(p["x"][0] < 1, lambda: step(0.0, p["x"]), lambda: p["x"]))

    function = {"for": in_for, "while_loop": in_while_loop, "scan": in_scan, "map_fn": in_map_fn, "cond": in_cond}[
        written
    ]
    inner = tf.function(function)
    m = model(tf.function(lambda p: inner(p) * 2))
    m.loss(m.parameters())  # traced already
    check(m, step, "log", forward=True)


def test_a_function_given_to_tensorflow(tf):
    def function(p):
        logs = tf.map_fn(tf.math.log, p["x"])  # NAN
        return tf.reduce_sum(tf.where(p["x"] > 0, logs, 0.0))

    check(model(function), function, "log", forward=True)


def test_in_a_graph_that_cannot_be_entered(tf):
    """The line of the call, for all that is in it."""

    def function(p):
        logs = tf.vectorized_map(lambda x: tf.where(x > 0, tf.math.log(x), 0.0), p["x"])  # NAN
        return tf.reduce_sum(logs)

    check(model(function), function, "vectorized_map")


def test_in_a_rule_of_the_user(tf):
    @tf.custom_gradient
    def root(x):
        y = tf.sqrt(x)
        return y, lambda g: 0.5 * g / y

    def function(p):
        y = root(tf.square(p["x"]))  # NAN
        return tf.reduce_sum(y)

    check(model(function), function, "root")
    assert model(function, X + 1).origin() is None

    def masked(p):
        y = p["x"] + 0.0
        return tf.reduce_sum(root(y + 1.0)) + tf.reduce_sum(tf.sqrt(y))  # NAN

    check(model(masked), masked, "sqrt")


def test_in_a_function_that_is_recomputed(tf):
    def function(p):
        roots = tf.recompute_grad(tf.sqrt)(p["x"])  # NAN
        return tf.reduce_sum(roots)

    check(model(function), function, "recompute_grad")


def test_in_a_function_of_keras(tf):
    import keras

    def function(p):
        return keras.ops.norm(0 * p["x"])  # NAN

    check(model(function), function, "norm")


def test_behind_a_gradient_in_the_loss(tf):
    def function(p):
        with tf.GradientTape() as tape:
            tape.watch(p["x"])
            y = tf.reduce_sum(tf.sqrt(p["x"] + 1.0) * p["x"])
        return tf.norm(0 * tape.gradient(y, p["x"]))  # NAN

    check(model(function), function, "norm")


def test_gathered_rows(tf):
    def function(p):
        roots = tf.sqrt(tf.gather(p["x"], [0, 1, 0]))  # NAN
        return tf.reduce_sum(roots)

    check(model(function), function, "sqrt")


def test_a_function_for_graphs_only_has_none(tf):
    @tf.function
    def function(p):
        return tf.reduce_sum(tf.gradients(log_under_where(p), p["x"])[0])

    m = model(function)
    assert not np.isfinite(m.loss(m.parameters()))
    assert m.origin() is None


def test_without_callbacks_there_is_none(monkeypatch):
    from tensorflow.python.framework import op_callbacks

    monkeypatch.delattr(op_callbacks, "add_op_callback")
    assert model(log_under_where).origin() is None


def test_no_callback_stays(tf):
    from tensorflow.python.eager import context, execute

    def failing(p):
        log_under_where(p)
        during.append((execute.execute, list(context.context().op_callbacks)))
        raise ValueError

    class Interrupted(BaseException):
        pass

    def interrupted(p):
        log_under_where(p)
        raise Interrupted

    before, during = (execute.execute, list(context.context().op_callbacks)), []
    assert model(log_under_where).origin() is not None
    assert (execute.execute, list(context.context().op_callbacks)) == before
    assert model(failing).origin() is None
    assert during
    assert during[0] != before
    assert (execute.execute, list(context.context().op_callbacks)) == before
    with pytest.raises(Interrupted):
        model(interrupted).origin()
    assert (execute.execute, list(context.context().op_callbacks)) == before


def test_threads_at_once():
    found = []
    threads = [threading.Thread(target=lambda: found.append(model(norm_at_zero).origin())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(f.operation, [f.line]) for f in found] == 4 * [("norm", marked(norm_at_zero, "# NAN"))]


def test_one_thread_does_not_end_the_callbacks_of_another():
    """TensorFlow does so: the last callback of a thread ends those of all in `execute`."""
    from tensorflow.python.eager import execute

    listening, ended = [], threading.Event()

    def elsewhere():
        model(norm_at_zero).origin()
        ended.set()

    def waiting(p):
        other.start()
        ended.wait(timeout=1)
        listening.append(execute.execute is execute.execute_with_callbacks)
        return norm_at_zero(p)

    other = threading.Thread(target=elsewhere)
    assert model(waiting).origin() is not None
    other.join()
    assert ended.is_set()
    assert listening == [True]


def test_another_thread_is_not_listened_to(tf):
    def function(p):
        thread = threading.Thread(target=lambda: norm_at_zero({"x": tf.constant(X)}))
        thread.start()
        thread.join()
        return log_under_where(p)

    check(model(function), log_under_where, "log", forward=True)


@pytest.mark.parametrize(("x", "finite"), [(X, False), (X + 0.4, True)])
def test_an_audit_of_it(x, finite):
    report = gradaudit.audit(model(log_under_where, x))
    assert ("GA604" in [f.code for f in report.findings]) is not finite
