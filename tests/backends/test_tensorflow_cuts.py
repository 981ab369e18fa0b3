"""Cuts in TensorFlow losses: listed at their line, removed, held; nothing stays redirected."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from gradaudit.errors import ModelContractError
from gradaudit.protocols import SupportsCuts
from tests import conftest
from tests.backends.cutting import marked

#: Collected where TensorFlow is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "tensorflow" in conftest.tested()

W = np.random.default_rng(7).normal(0, 0.5, (3, 3))
H0 = np.array([0.3, -0.2, 0.5])
STEPS = 30


@pytest.fixture
def tf():
    import tensorflow as tf

    return tf


def model(function, dtype="float64"):
    return registry.get("tensorflow").function_model(function, {"W": W.astype(dtype)})


def numeric(m, h=1e-3):
    """The gradient by central differences of fourth order."""
    found = np.zeros_like(W)
    for index in np.ndindex(W.shape):

        def at(t, index=index):
            moved = W.copy()
            moved[index] += t
            return float(m.loss({"W": moved}))

        found[index] = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    return found


def gradient(m):
    return m.value_and_grad(m.parameters())[1]["W"]


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def check_held(m, cuts):
    held = m.holding(cuts)
    base = m.loss(m.parameters())
    assert abs(held.loss(held.parameters()) - base) <= 1e-12 * abs(base)
    assert distance(numeric(held), gradient(m)) < 1e-6
    assert distance(gradient(held), gradient(m)) < 1e-9
    assert distance(numeric(m), gradient(m)) > 1e-3


def check_removed(m, cuts, uncut):
    whole = gradient(model(uncut))
    assert distance(gradient(m), whole) > 1e-3
    assert distance(gradient(m.without(cuts)), whole) < 1e-9


def step(h, w):
    import tensorflow as tf

    return tf.tanh(tf.linalg.matvec(w, h) + tf.constant(H0, w.dtype))


def walked(p):
    import tensorflow as tf

    h = tf.constant(H0, p["W"].dtype)
    for _ in range(STEPS):
        h = tf.stop_gradient(h)  # CUT
        h = step(h, p["W"])
    return tf.reduce_sum(h**2)


def uncut(p):
    import tensorflow as tf

    h = tf.constant(H0, p["W"].dtype)
    for _ in range(STEPS):
        h = step(h, p["W"])
    return tf.reduce_sum(h**2)


def test_the_model_supports_cuts():
    assert isinstance(model(uncut), SupportsCuts)


def test_a_python_loop():
    m = model(walked)
    (cut,) = m.cuts()
    assert (cut.kind, cut.path, cut.function) == ("stop_gradient", __file__, "walked")
    assert [cut.line] == marked(walked)
    # the first state is constant
    assert (cut.executions, cut.library, cut.removable) == (STEPS - 1, False, True)
    check_removed(m, [cut], uncut)
    check_held(m, [cut])


@pytest.mark.parametrize("written", ["for", "while_loop"])
def test_a_loop_in_a_tf_function(tf, written):
    def body(i, h, w):
        h = tf.stop_gradient(h)  # CUT
        return i + 1, step(h, w)

    def in_while_loop(p):
        h = tf.constant(H0, p["W"].dtype)
        return tf.reduce_sum(tf.while_loop(lambda i, _: i < STEPS, lambda i, h: body(i, h, p["W"]), (0, h))[1] ** 2)

    def in_for(p):
        h = tf.constant(H0, p["W"].dtype)
        for _ in tf.range(STEPS):
            h = tf.stop_gradient(h)  # CUT
            h = step(h, p["W"])
        return tf.reduce_sum(h**2)

    function, place = (in_for, in_for) if written == "for" else (in_while_loop, body)
    inner = tf.function(function)
    m = model(tf.function(lambda p: inner(p) * 2))
    m.loss(m.parameters())  # traced already
    (cut,) = m.cuts()
    assert ([cut.line], cut.function, cut.executions) == (marked(place), place.__name__, STEPS - 1)
    check_removed(m, [cut], lambda p: uncut(p) * 2)
    check_held(m, [cut])


@pytest.mark.parametrize("written", ["map_fn", "scan", "cond", "method"])
def test_a_cut_in_a_function_that_tensorflow_calls(tf, written):
    def squared(x):
        return tf.reduce_sum(x * tf.stop_gradient(x))  # CUT

    class Squares:
        @tf.function
        def squared(self, x):
            for _ in tf.range(1):
                x = x * tf.stop_gradient(x)  # CUT
            return tf.reduce_sum(x)

    method = Squares().squared
    function, place, executions = {
        "map_fn": (lambda p: tf.reduce_sum(tf.map_fn(squared, p["W"])), squared, 3),
        "scan": (lambda p: tf.scan(lambda s, x: s + squared(x), p["W"], tf.zeros((), "float64"))[-1], squared, 3),
        "cond": (lambda p: tf.cond(p["W"][0, 0] < 9, lambda: squared(p["W"]), lambda: 0 * squared(p["W"])), squared, 1),
        "method": (lambda p: method(p["W"]), Squares.squared.python_function, 1),
    }[written]
    m = model(function)
    (cut,) = m.cuts()
    assert ([cut.line], cut.function, cut.executions) == (marked(place), "squared", executions)
    assert (cut.path, cut.library) == (__file__, False)
    check_removed(m, [cut], lambda p: tf.reduce_sum(p["W"] ** 2))
    check_held(m, [cut])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("written", ["removable", "not"])
def test_an_audit_proves_the_cut(written, dtype):
    function = walked if written == "removable" else through_numpy
    (line,) = marked(function)
    report = gradaudit.audit(model(function, dtype))
    assert report.verdict is Verdict.DISAGREE
    assert [f.title for f in report.findings] == [f"cut at test_tensorflow_cuts.py:{line}"]
    meant = gradaudit.audit(model(function, dtype), intended=(f"test_tensorflow_cuts.py:{line}",))
    assert (meant.verdict, meant.judged) == (Verdict.AGREE, "frozen")


def through_numpy(p):
    import tensorflow as tf

    h = step(tf.constant(H0, p["W"].dtype), p["W"])
    values = h.numpy()  # CUT
    values *= 2  # in place, as users do
    return tf.reduce_sum(step(tf.constant(values), p["W"]) ** 2)


def through_float(p):
    import tensorflow as tf

    h = step(tf.constant(H0, p["W"].dtype), p["W"])
    scale = float(tf.reduce_sum(h**2))  # CUT
    return tf.reduce_sum(h**2) * scale


def through_asarray(p):
    import tensorflow as tf

    h = step(tf.constant(H0, p["W"].dtype), p["W"])
    scale = np.asarray(h)  # CUT
    return tf.reduce_sum(h**2 * scale)


def through_numpy_function(p):
    import tensorflow as tf

    h = step(tf.constant(H0, p["W"].dtype), p["W"])
    scale = tf.numpy_function(np.exp, [h], h.dtype)  # CUT
    return tf.reduce_sum(h**2 * scale)


@pytest.mark.parametrize("function", [through_numpy, through_float, through_asarray, through_numpy_function])
def test_a_round_trip_is_held_but_not_removed(function):
    m = model(function)
    (cut,) = m.cuts()
    assert cut.kind == function.__name__.removeprefix("through_")
    assert ([cut.line], cut.removable, cut.library) == (marked(function), False, False)
    assert m.without([cut]) is None
    check_held(m, [cut])


def test_a_cut_on_constant_data_is_not_listed(tf):
    def function(p):
        data = tf.stop_gradient(tf.constant(H0, p["W"].dtype))
        h = tf.stop_gradient(step(data, p["W"]))  # CUT
        return tf.reduce_sum(step(h, p["W"]) ** 2)

    def whole(p):
        return tf.reduce_sum(step(step(tf.constant(H0, p["W"].dtype), p["W"]), p["W"]) ** 2)

    m = model(function)
    (cut,) = m.cuts()
    assert ([cut.line], cut.executions) == (marked(function), 1)
    check_removed(m, [cut], whole)
    check_held(m, [cut])


def test_two_cuts_on_one_line_are_two(tf):
    def function(p):
        a, b = step(tf.constant(H0, p["W"].dtype), p["W"]), step(2 * H0, p["W"])
        return tf.reduce_sum(a * tf.stop_gradient(a) + b**2 * tf.stop_gradient(b))  # CUT

    m = model(function)
    first, second = m.cuts()
    assert [first.line, second.line] == 2 * marked(function)
    assert first != second
    assert first.column < second.column
    check_held(m, [first, second])

    def second_only(p):
        a, b = step(tf.constant(H0, p["W"].dtype), p["W"]), step(2 * H0, p["W"])
        return tf.reduce_sum(a * a + b**2 * tf.stop_gradient(b))

    check_removed(m, [first], second_only)


def test_a_cut_behind_a_cut_has_the_same_numbers_when_the_first_is_held(tf):
    def function(p):
        h = step(tf.constant(H0, p["W"].dtype), p["W"])
        a = tf.stop_gradient(h)
        b = tf.stop_gradient(tf.stop_gradient(a * 2) * tf.stop_gradient(h))
        return tf.reduce_sum(step(a, p["W"]) * b)

    m = model(function)
    cuts = m.cuts()
    assert [cut.executions for cut in cuts] == [1, 1, 1, 1]
    check_held(m, cuts)
    check_held(m, cuts[:1] + cuts[-1:])

    def whole(p):
        h = step(tf.constant(H0, p["W"].dtype), p["W"])
        return tf.reduce_sum(step(h, p["W"]) * (h * 2 * h))

    check_removed(m, cuts, whole)


def test_a_variable_is_no_parameter_and_its_cut_not_listed(tf):
    scale = tf.Variable(2.0, dtype="float64")
    assert model(lambda p: uncut(p) * tf.stop_gradient(scale)).cuts() == ()


def test_a_program_without_cuts_lists_nothing(tf):
    assert model(uncut).cuts() == ()
    assert model(tf.function(uncut)).cuts() == ()
    (cut,) = model(walked).cuts()
    assert model(uncut).without([cut]) is None
    assert model(uncut).holding([cut]) is None


def test_a_cut_in_tensorflow_itself_is_the_librarys(tf):
    cuts = model(lambda p: tf.reduce_logsumexp(uncut(p) * p["W"])).cuts()
    assert cuts
    assert all(cut.library and cut.path == __file__ for cut in cuts)


def test_a_cut_under_a_rule_of_its_own_does_nothing_and_is_not_listed(tf):
    @tf.custom_gradient
    def square(x):
        return tf.stop_gradient(x) * x, lambda g: 2 * x * g

    assert model(lambda p: tf.reduce_sum(square(p["W"]))).cuts() == ()


def test_a_graph_inside_is_left_alone(tf):
    def function(p):
        return tf.reduce_sum(tf.vectorized_map(lambda row: row * tf.stop_gradient(row), p["W"])) + walked(p)

    m = model(function)
    (cut,) = m.cuts()
    assert [cut.line] == marked(walked)
    base = m.loss(m.parameters())
    assert m.holding([cut]).loss(m.parameters()) == pytest.approx(base, rel=1e-12)


def test_a_function_for_graphs_only_lists_nothing(tf):
    @tf.function
    def function(p):
        loss = walked(p)
        return tf.reduce_sum(tf.gradients(loss, p["W"])[0] ** 2)

    m = model(function)
    (cut,) = model(walked).cuts()
    assert m.loss(m.parameters()) > 0
    assert m.cuts() == ()
    assert m.without([cut]) is None
    assert m.holding([cut]) is None


def test_a_held_cut_that_runs_more_often_than_at_the_base_point(tf):
    def function(p):
        h = step(tf.constant(H0, p["W"].dtype), p["W"])
        for _ in range(2 if p["W"][0, 0] > 10 else 1):
            h = step(tf.stop_gradient(h), p["W"])
        return tf.reduce_sum(h)

    m = model(function)
    with pytest.raises(ModelContractError, match="more often"):
        m.holding(m.cuts()).loss({"W": W + 20})


def patched():
    from tensorflow.python.eager.polymorphic_function import polymorphic_function
    from tensorflow.python.framework import ops
    from tensorflow.python.ops import array_ops, custom_gradient, gen_array_ops, script_ops

    base = vars(ops._EagerTensorBase)
    return [
        array_ops.record,
        gen_array_ops.stop_gradient,
        script_ops.py_func_common,
        custom_gradient._eager_mode_decorator,
        vars(polymorphic_function.Function)["__call__"],
        *(base[name] for name in ("numpy", "__array__", "__float__")),
        np.array,
        np.asarray,
    ]


def same(before, after):
    return all(a is b for a, b in zip(before, after, strict=True))


def test_nothing_stays_redirected(tf):
    during = []

    def failing(p):
        tf.stop_gradient(p["W"])
        during.append(patched())
        msg = "the user's"
        raise ValueError(msg)

    before = patched()
    m = model(walked)
    cuts = m.cuts()
    m.without(cuts).value_and_grad(m.parameters())
    m.holding(cuts).loss(m.parameters())
    assert same(before, patched())
    assert model(failing).cuts() == ()
    assert not any(a is b for a, b in zip(before, during[0], strict=True))
    assert same(before, patched())
    assert tf.constant(1.5).numpy() == 1.5
    assert float(tf.constant(1.5)) == 1.5


def test_nothing_is_redirected_where_tensorflow_lacks_a_name(monkeypatch):
    from tensorflow.python.ops import script_ops

    monkeypatch.delattr(script_ops, "py_func_common")
    m = model(walked)
    from tensorflow.python.ops import gen_array_ops

    before = gen_array_ops.stop_gradient
    assert m.cuts() == ()
    assert gen_array_ops.stop_gradient is before


def test_other_threads_are_undisturbed(tf):
    others = []

    def elsewhere():
        x = tf.constant(W)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(x * tf.stop_gradient(x))
        inside = tf.function(tf.executing_eagerly)()
        others.append((tape.gradient(y, x).numpy(), inside))

    def function(p):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return walked(p)

    m = model(function)
    (cut,) = m.cuts()
    gradient(m.without([cut]))
    assert len(others) == 2
    for found, inside in others:
        np.testing.assert_array_equal(found, W)
        assert not inside


def test_two_threads_at_once_put_everything_back():
    before, found = patched(), []
    threads = [threading.Thread(target=lambda: found.append(model(walked).cuts())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(cuts) for cuts in found] == [1, 1, 1]
    assert same(before, patched())


def test_float32_with_its_twin():
    m = model(walked, "float32")
    cuts = m.cuts()
    assert cuts == m.twin().cuts()
    held = m.holding(cuts)
    assert held.loss(held.parameters()).dtype == np.float32
    assert held.loss(held.parameters()) == m.loss(m.parameters())
    twin = held.twin()
    assert twin.twin() is None
    assert twin.loss(twin.parameters()).dtype == np.float64
    assert distance(gradient(m), numeric(twin)) < 1e-5
    whole = gradient(model(uncut))
    assert distance(gradient(m.without(cuts)), whole) < 1e-5
    assert distance(gradient(m.without(cuts).twin()), whole) < 1e-6
