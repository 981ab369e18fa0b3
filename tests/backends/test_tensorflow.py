"""What is particular to TensorFlow: variables, tf.function, tapes, vectorized_map, shared traces, its bits."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from gradaudit.direction import Point, displace, random_direction
from gradaudit.errors import ModelContractError
from gradaudit.recurrent import RecurrentSpec, SequenceData, none, random_sequences, tail
from tests import conftest

#: Collected where TensorFlow is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "tensorflow" in conftest.tested()


@pytest.fixture
def tf():
    import tensorflow as tf

    return tf


def model(function, parameters, **options):
    return registry.get("tensorflow").function_model(function, parameters, **options)


def total(x):
    import tensorflow as tf

    return tf.reduce_sum(x)


def quadratic(p):
    return total(p["w"] ** 2) * p["s"]


def base(dtype="float64"):
    return {"w": np.array([1.0, -2.0, 3.0], dtype), "s": np.array(0.5, dtype)}


TANGENTS = {"w": np.ones(3), "s": np.array(2.0)}


def points(parameters, n=5):
    direction = random_direction("all", dict.fromkeys(parameters, 1.0), 3)
    return [Point(direction, float(t)) for t in np.linspace(-1, 1, n)]


def exercise(m):
    m.loss(m.parameters())
    m.value_and_grad(m.parameters())
    m.jvp(m.parameters(), m.parameters())
    m.along(points(m.parameters()))
    m.twin()
    assert m.point_bytes > 0


def check_along(m, n=5):
    together = m.along(points(m.parameters(), n))
    alone = [m.loss(displace(m.parameters(), point)) for point in points(m.parameters(), n)]
    assert together.shape == (n,)
    np.testing.assert_allclose(together, alone, rtol=1e-14)


def counted(function):
    def counting(p):
        counting.calls += 1
        return function(p)

    counting.calls = 0
    return counting


def looped(tf, p):
    """A loop whose backward pass keeps lists: forward mode has its troubles with it."""

    def body(t, h):
        return t + 1, tf.tanh(h * p["s"] + p["w"])

    return tf.reduce_sum(tf.while_loop(lambda t, _: t < 6, body, (0, tf.zeros_like(p["w"])))[1])


def test_a_function_and_its_gradient():
    m = model(quadratic, base())
    loss, gradients = m.value_and_grad(m.parameters())
    assert loss == m.loss(m.parameters()) == 7.0
    assert isinstance(loss, np.float64)
    np.testing.assert_array_equal(gradients["w"], [1.0, -2.0, 3.0])
    assert gradients["s"] == 14.0
    assert gradients["s"].shape == ()
    assert m.jvp(m.parameters(), TANGENTS) == 2.0 + 28.0


def test_a_tf_function_is_audited_like_a_plain_one(tf):
    m = model(tf.function(quadratic), base())
    loss, gradients = m.value_and_grad(m.parameters())
    assert loss == 7.0
    np.testing.assert_array_equal(gradients["w"], [1.0, -2.0, 3.0])
    assert m.jvp(m.parameters(), TANGENTS) == 30.0
    check_along(m)
    assert gradaudit.audit(model(tf.function(quadratic), base("float32"))).verdict is Verdict.AGREE


@pytest.mark.parametrize("traced", [False, True])
def test_a_cut_is_found(tf, traced):
    def cut(p):
        return quadratic({"w": p["w"], "s": tf.stop_gradient(p["s"])}) + 0 * p["s"]

    report = gradaudit.audit(model(tf.function(cut) if traced else cut, base()))
    assert {p.name: p.verdict for p in report.parameters} == {"w": Verdict.AGREE, "s": Verdict.DISAGREE}


# what stays as it was


def test_the_users_variables_stay_as_they_are(tf):
    variables = {name: tf.Variable(value) for name, value in base().items()}
    scale = tf.Variable(2.0, dtype=tf.float64)
    m = model(lambda p: quadratic(p) * scale, variables)
    exercise(m)
    assert gradaudit.audit(m).verdict is Verdict.AGREE
    assert scale.numpy() == 2.0
    for name, value in base().items():
        np.testing.assert_array_equal(variables[name].numpy(), value)
    variables["w"].assign_add([1.0, 1.0, 1.0])
    np.testing.assert_array_equal(m.parameters()["w"], base()["w"])
    assert not m.parameters()["w"].flags.writeable


def test_a_function_may_write_on_what_it_gets():
    def careless(p):
        p.pop("s")
        return total(p.pop("w") ** 2)

    m, mine = model(careless, base()), base()
    assert m.loss(mine) == m.value_and_grad(mine)[0] == 14.0
    assert m.jvp(mine, TANGENTS) == 4.0
    assert list(mine) == ["w", "s"]


def observed(tf):
    return {
        "eager": tf.config.functions_run_eagerly(),
        "placement": tf.config.get_soft_device_placement(),
        "jit": tf.config.optimizer.get_jit(),
        "options": tf.config.optimizer.get_experimental_options(),
        "floatx": tf.keras.backend.floatx(),
        "threads": (
            tf.config.threading.get_inter_op_parallelism_threads(),
            tf.config.threading.get_intra_op_parallelism_threads(),
        ),
        "level": (tf.get_logger().level, logging.getLogger().level),
    }


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_the_state_is_preserved(tf, error):
    generator = tf.random.get_global_generator()
    before, settings = generator.state.numpy().tolist(), observed(tf)
    try:
        with model(quadratic, base()).preserved():
            generator.normal((3,))
            assert generator.state.numpy().tolist() != before
            tf.random.set_global_generator(tf.random.Generator.from_seed(1))
            exercise(model(quadratic, base("float32")))
            if error:
                raise error
    except (ValueError, KeyboardInterrupt) as raised:
        assert type(raised) is error  # noqa: PT017
    assert tf.random.get_global_generator() is generator
    assert generator.state.numpy().tolist() == before
    assert observed(tf) == settings


def test_an_audit_of_a_random_loss_leaves_the_generator_alone(tf):
    generator = tf.random.get_global_generator()
    before = generator.state.numpy().tolist()
    gradaudit.audit(model(lambda p: quadratic(p) + 0 * generator.normal((), dtype=tf.float64), base()))
    assert generator.state.numpy().tolist() == before


def test_no_generator_is_made():
    program = """
import gradaudit
from gradaudit.backends import registry
from tensorflow.python.ops import stateful_random_ops as ops
m = registry.get("tensorflow").function_model(lambda p: p["w"] ** 2, {"w": 1.5})
with m.preserved():
    m.value_and_grad(m.parameters())
assert ops.global_generator is None
with m.preserved():
    ops.get_global_generator()
assert ops.global_generator is not None  # and so the check above can fail
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_an_error_of_the_function_passes_unchanged():
    def fails(p):
        msg = "not here"
        raise ZeroDivisionError(msg)

    m = model(fails, base())
    for call in (m.loss, m.value_and_grad, lambda p: m.jvp(p, p), lambda p: m.along(points(p))):
        with pytest.raises(ZeroDivisionError, match="not here"):
            call(base())


def test_functions_that_run_eagerly_give_the_same_numbers(tf):
    spec, weights, data = seed_case(140, learn_initial_state=True)
    backend = registry.get("tensorflow")

    def results():
        m = backend.recurrent_model(spec, weights, data, tail(2))
        loss, gradients = m.value_and_grad(weights)
        return [loss, *gradients.values(), m.along(points(weights)), m.frozen().loss(weights)]

    expected = results()
    tf.config.run_functions_eagerly(run_eagerly=True)
    try:
        eager = results()
    finally:
        tf.config.run_functions_eagerly(run_eagerly=False)
    for actual, wanted in zip(eager, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5)


# the contract


def test_a_missing_gradient_is_none(tf):
    _, gradients = model(lambda p: total(p["w"] ** 2), base()).value_and_grad(base())
    assert gradients["s"] is None
    np.testing.assert_array_equal(gradients["w"], 2 * base()["w"])
    for independent in (lambda p: tf.stop_gradient(quadratic(p)), lambda p: float(quadratic(p))):
        m = model(independent, base())
        loss, gradients = m.value_and_grad(base())
        assert loss == 7.0
        assert gradients == {"w": None, "s": None}
        assert m.jvp(base(), TANGENTS) == 0.0


def test_a_zero_gradient_is_not_missing():
    _, gradients = model(lambda p: total(0 * p["w"]) + p["s"], base()).value_and_grad(base())
    assert gradients["w"].tolist() == [0.0, 0.0, 0.0]


def test_a_sparse_gradient_becomes_an_array(tf):
    def lookup(p):
        return total(tf.gather(p["table"], [0, 2, 2]) ** 2)

    m = model(lookup, {"table": np.ones((3, 2))})
    with tf.GradientTape() as tape:
        table = tf.Variable(np.ones((3, 2)))
        loss = lookup({"table": table})
    assert isinstance(tape.gradient(loss, table), tf.IndexedSlices)
    _, gradients = m.value_and_grad(m.parameters())
    assert gradients["table"].tolist() == [[2, 2], [0, 0], [4, 4]]
    assert gradaudit.audit(m).verdict is Verdict.AGREE


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda p: p["w"] ** 2, r"the loss has shape \(3,\), but it must be one number .*\n\nHint: reduce it"),
        (
            lambda p: (quadratic(p), p["s"]),
            r"the loss is a tuple of 2 \(EagerTensor, EagerTensor\), but",
        ),
        (lambda p: p["s"] > 0, r"the loss has dtype bool, but it must be a real .*\n\nHint: return a float"),
        (lambda p: total(np.arange(3)), r"the loss has dtype int64, but it must be a real .*\n\nHint: return a float"),
    ],
)
def test_a_loss_that_is_no_real_number_is_refused(tf, function, text, traced):
    m = model(tf.function(function, autograph=False) if traced else function, base())
    for call in (m.loss, m.value_and_grad, lambda p: m.jvp(p, p), lambda p: m.along(points(p))):
        with pytest.raises(ModelContractError, match=text):
            call(base())


# many losses at once


def test_vectorized_map_evaluates_all_points_in_one_call():
    m = model(function := counted(quadratic), base())
    m.along(points(base(), 50))
    assert function.calls == 1
    check_along(m)
    check_along(m, 7)


def test_many_models_bring_no_warning(caplog):
    for i in range(1, 13):
        m = model(quadratic, {"w": np.ones(i), "s": np.array(0.5)})
        check_along(m, i)
        assert m.jvp(m.parameters(), m.parameters()) == pytest.approx(1.5 * i)
    assert caplog.text == ""


def test_the_loop_where_vectorized_map_fails():
    def branching(p):
        return quadratic(p) if float(p["s"]) > 0 else quadratic(p) * 3

    m = model(function := counted(branching), base())
    m.along(points(base(), 10))
    assert function.calls == 11
    m.along(points(base(), 10))
    assert function.calls == 21  # what failed once is not tried again
    check_along(m)


def test_the_loop_where_an_operation_has_no_rule(tf):
    def in_python(p):
        return quadratic(p) + tf.py_function(lambda s: 3 * s, [p["s"]], tf.float64)

    check_along(model(in_python, base()))


def test_a_batched_function_is_used(tf):
    def batched(p):
        return tf.reduce_sum(p["w"] ** 2, axis=1) * p["s"]

    m = model(function := counted(quadratic), base(), batched=batched)
    m.along(points(base()))
    assert function.calls == 0
    check_along(m)
    with pytest.raises(ModelContractError, match=r"5 points gave losses of shape \(\).*\n\nHint: return one loss for"):
        model(quadratic, base(), batched=lambda p: total(batched(p))).along(points(base()))


def test_what_a_point_takes_is_read_off_the_graph(tf):
    small = model(quadratic, base())
    assert 4 * 8 <= small.point_bytes <= 1000
    for wrap in (tf.function, lambda f: f):
        large = model(wrap(lambda p: total(tf.repeat(p["w"], 100_000) ** 2) * p["s"]), base())
        assert 300_000 * 8 <= large.point_bytes <= 4 * 300_000 * 8
    assert model(quadratic, base(), point_bytes=5).point_bytes == 5
    assert model(lambda p: quadratic(p) * float(p["s"]), base()).point_bytes == 4 * 8


# the twin


def test_the_twin_is_the_function_in_float64():
    m = model(quadratic, base("float32"))
    twin = m.twin()
    loss, gradients = twin.value_and_grad(twin.parameters())
    assert {loss.dtype, *(g.dtype for g in gradients.values())} == {np.dtype("float64")}
    assert loss == 7.0
    assert twin.twin() is None
    assert model(quadratic, base("float32"), point_bytes=100).twin().point_bytes == 200
    assert gradaudit.audit(m).source == "a float64 twin"


def test_no_twin_where_the_function_is_bound_to_float32(tf):
    data = tf.constant([1.0, 2.0, 3.0])
    for function in (lambda p: total(data * p["w"]) * p["s"], lambda p: tf.cast(quadratic(p), tf.float32)):
        m = model(function, base("float32"))
        assert m.twin() is None
        assert gradaudit.audit(m).source == "the float32 loss itself"


# forward mode


@pytest.mark.parametrize("traced", ["plain", "tf.function", "inside"])
def test_forward_mode_of_a_loop_before_and_after_reverse_mode(tf, traced):
    graph = tf.function(lambda p: looped(tf, p))
    function = {"plain": lambda p: looped(tf, p), "tf.function": graph, "inside": lambda p: 1 * graph(p)}[traced]
    m = model(function, base())
    before = m.jvp(base(), TANGENTS)
    _, gradients = m.value_and_grad(base())
    expected = sum((gradients[n] * t).sum() for n, t in TANGENTS.items())
    assert before == pytest.approx(expected, rel=1e-12)
    # a tf.function that was differentiated in reverse first
    again = model(function, base())
    again.value_and_grad(base())
    assert again.jvp(base(), TANGENTS) == again.jvp(base(), TANGENTS) == before
    np.testing.assert_array_equal(again.value_and_grad(base())[1]["w"], gradients["w"])


# the networks


def seed_case(n_steps, *, dtype="float32", n_sequences=10, **options):
    spec = RecurrentSpec(n_features=2, n_classes=2, **options)
    rng = np.random.default_rng(4)
    weights = {n: rng.standard_normal(s).astype(dtype) for n, s in spec.shapes().items()}
    weights["R"] *= 0.3
    return spec, weights, random_sequences(spec, n_sequences=n_sequences, n_steps=n_steps, seed=0)


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "sigmoid", "softmax"])
def test_truncation_does_not_change_a_bit_of_the_forward_pass(activation):
    spec, weights, data = seed_case(600, activation=activation, learn_initial_state=True)
    backend = registry.get("tensorflow")
    full = backend.recurrent_model(spec, weights, data, none())
    for k in (1, 88, 128, 300, 599):
        cut = backend.recurrent_model(spec, weights, data, tail(k))
        assert cut.loss(weights) == cut.value_and_grad(weights)[0] == full.value_and_grad(weights)[0]
        np.testing.assert_array_equal(cut.step_losses(weights), full.step_losses(weights))


@pytest.mark.parametrize("truncation", [none(), tail(3000)], ids=str)
def test_ten_thousand_steps_in_float32_lose_no_digits(truncation):
    spec, weights, data = seed_case(10_000, learn_initial_state=True)
    m = registry.get("tensorflow").recurrent_model(spec, weights, data, truncation)
    assert_no_digits_lost(m)


def test_a_hundred_thousand_vectors_in_float32_lose_no_digits():
    spec, weights, data = seed_case(10_000)
    assert_no_digits_lost(registry.get("tensorflow").dense_model(spec, weights, data))


def assert_no_digits_lost(m):
    twin = m.twin()
    loss, gradients = m.value_and_grad(m.parameters())
    exact_loss, exact = twin.value_and_grad(twin.parameters())
    assert loss == pytest.approx(float(exact_loss), rel=2e-7)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, exact[name], rtol=0, atol=3e-6 * np.abs(exact[name]).max())


def test_a_step_without_a_loss_cannot_spoil_the_gradient():
    spec = RecurrentSpec(n_features=2, n_classes=2, outputs="last")
    features = np.random.default_rng(0).standard_normal((1, 4, 2))
    features[0, 0] = [2000.0, -2000.0]  # the softmax is 0 and 1 at this step, the cross-entropy of its label infinite
    weights = {"W": np.eye(2), "R": np.eye(2), "b": np.zeros(2)}
    data = SequenceData(features=features, labels=np.array([[1, 0, 0, 0]]))
    m = registry.get("tensorflow").recurrent_model(spec, weights, data, none())
    loss, gradients = m.value_and_grad(weights)
    assert np.isfinite([loss, *m.step_losses(weights), *gradients["W"].ravel(), *gradients["R"].ravel()]).all()


def test_models_of_one_kind_share_their_traces(caplog):
    from gradaudit.backends.tensorflow import cells

    def use(n_steps, k):
        spec, weights, data = seed_case(n_steps, activation="tanh", n_sequences=4)
        m = registry.get("tensorflow").recurrent_model(spec, weights, data, tail(k))
        m.value_and_grad(weights)
        m.along(points(weights, n_steps // 10))
        return m._network

    for n_steps, k in [(20, 3), (20, 5), (21, 3), (22, 1), (300, 200)]:
        network = use(n_steps, k)
    for n_copies in (1, None):
        graph = cells.recurrent_losses(network._kind(n_copies=n_copies))
        assert graph.experimental_get_tracing_count() == 1
    assert caplog.text == ""
