"""Training steps that return their gradient, or give it to an optimiser of Keras: right ones agree, faults are named.

PyTorch's are in `tests.backends.test_torch_step`. A program returns what `gradaudit.audit_step` takes, positionally and
by name; ``fault`` is one of its own, or None.
"""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.errors import ModelContractError
from tests import conftest

TESTED = conftest.tested()
RNG = np.random.default_rng(0)
ROWS, TARGET = RNG.standard_normal((10, 4)).astype("float32"), 3 * RNG.standard_normal((10, 1)).astype("float32")
BATCHES = ((0, 4), (4, 8), (8, 10))


def numpy_ranks(fault):
    """Two ranks, whose gradients are averaged; with the fault, twice."""

    def loss(w):
        return np.mean((ROWS @ w - TARGET) ** 2)

    def gradient(w, rows):
        x, y = ROWS[rows], TARGET[rows]
        return 2 * x.T @ (x @ w - y) / len(x)

    def step(w):
        halves = [gradient(w, slice(0, 5)), gradient(w, slice(5, 10))]
        mean = sum(halves) / 2
        return loss(w), mean / 2 if fault else mean

    return (np.random.default_rng(0).standard_normal((4, 1)), step), {"loss": loss, "sizes": {"world size": 2}}


def numpy_accumulation(fault):
    """A mean over micro-batches, not divided by their number."""

    def loss(p):
        return np.mean((ROWS @ p["w"] + p["b"] - TARGET) ** 2)

    def step(p):
        total = {"w": np.zeros((4, 1)), "b": np.zeros(1)}
        for rows in (slice(0, 5), slice(5, 10)):
            error = 2 * (ROWS[rows] @ p["w"] + p["b"] - TARGET[rows]) / 5
            total = {"w": total["w"] + ROWS[rows].T @ error, "b": total["b"] + error.sum(0)}
        return total if fault else {n: g / 2 for n, g in total.items()}

    return ({"w": np.random.default_rng(0).standard_normal((4, 1)), "b": np.ones(1)}, step), {
        "loss": loss,
        "sizes": {"micro-batches": 2},
    }


def jax_net():
    from jax import numpy as jnp

    tree = {
        "hidden": jnp.asarray(np.random.default_rng(0).standard_normal((4, 5)), "float32"),
        "out": jnp.ones((5, 1)),
        "steps": 3,
    }

    def loss(p, rows=slice(None)):
        return jnp.mean((jnp.tanh(ROWS[rows] @ p["hidden"]) @ p["out"] - TARGET[rows]) ** 2)

    return tree, loss


def jax_accumulation(fault):
    """Micro-batches of a scan, whose sum is not divided by their number."""
    import jax

    tree, loss = jax_net()
    weights = {n: p for n, p in tree.items() if n != "steps"}

    @jax.jit
    def step(p):
        grads = [jax.grad(loss)(p, slice(a, b)) for a, b in ((0, 5), (5, 10))]
        return loss(p), jax.tree.map(lambda a, b: (a + b) / (1 if fault else 2), *grads)

    return (weights, step), {"loss": loss, "sizes": {"micro-batches": 2}}


def jax_clipped(fault):
    """A chain of transformations as optax has it, clipped by global norm 1; 1e6 is not reached."""
    import jax
    from jax import numpy as jnp

    tree, loss = jax_net()
    weights = {n: p for n, p in tree.items() if n != "steps"}

    def step(p):
        value, grads = jax.value_and_grad(loss)(p)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        limit = 1.0 if fault else 1e6
        return value, jax.tree.map(lambda g: g * jnp.minimum(1, limit / norm), grads)

    return (weights, step), {"loss": loss}


def keras_net():
    import keras

    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(1)])
    return net, lambda net: keras.ops.mean((net(ROWS) - TARGET) ** 2)


def keras_apply(fault):
    """A step of one's own that applies its gradients; with the fault the optimiser clips them by norm 0.1."""
    import keras
    import tensorflow as tf

    net, loss = keras_net()
    optimizer = keras.optimizers.Adam(global_clipnorm=0.1 if fault else None)
    optimizer.build(net.trainable_variables)

    @tf.function
    def step(net):
        with tf.GradientTape() as tape:
            value = loss(net)
        grads = tape.gradient(value, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables, strict=True))
        return value

    return (net, step), {"loss": loss}


def keras_train_step(fault):
    """The model's own ``train_step``; with the fault on a loss that is a sum, where the mean is meant."""
    import keras
    import tensorflow as tf

    net, loss = keras_net()
    own = keras.losses.MeanSquaredError(reduction="sum" if fault else "sum_over_batch_size")
    net.compile(optimizer="sgd", loss=own, metrics=["mae"])
    data = tf.constant(ROWS), tf.constant(TARGET)
    return (net, lambda net: net.train_step(data)), {"loss": loss, "sizes": {"batch": 10}}


def tensorflow_module(fault):
    """A `tf.Module` whose step returns its gradients as a list, the mean of unequal micro-batches' means."""
    import tensorflow as tf

    class Net(tf.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (
                tf.Variable(np.random.default_rng(0).standard_normal((4, 1)), dtype=tf.float32),
                tf.Variable([0.5]),
            )

    def loss(net, rows=slice(None)):
        return tf.reduce_mean((ROWS[rows] @ net.a + net.b - TARGET[rows]) ** 2)

    def step(net):
        total = [0.0, 0.0]
        for start, stop in BATCHES:
            with tf.GradientTape() as tape:
                value = loss(net, slice(start, stop))
            weight = 1 / 3 if fault else (stop - start) / 10
            grads = tape.gradient(value, [net.a, net.b])
            total = [t + weight * g for t, g in zip(total, grads, strict=True)]
        return value, total

    return (Net(), step), {"loss": loss}


def keras_accumulation(fault):
    """A Keras model's own loop over unequal micro-batches, whose means are weighted by their rows, or equally."""
    import keras
    import tensorflow as tf

    net, loss = keras_net()
    optimizer = keras.optimizers.SGD()

    def step(net):
        total, mean = None, 0.0
        for start, stop in BATCHES:
            weight = 1 / 3 if fault else (stop - start) / 10
            with tf.GradientTape() as tape:
                value = weight * tf.reduce_mean((net(ROWS[start:stop]) - TARGET[start:stop]) ** 2)
            grads = tape.gradient(value, net.trainable_variables)
            total = grads if total is None else [t + g for t, g in zip(total, grads, strict=True)]
            mean = mean + value
        optimizer.apply_gradients(zip(total, net.trainable_variables, strict=True))
        return mean

    return (net, step), {"loss": loss}


def tensorflow_sum(fault):
    """A `tf.Module` that is called; the sum of unequal micro-batches' means, one gradient after the other."""
    import tensorflow as tf

    class Net(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(np.random.default_rng(0).standard_normal((4, 1)), dtype=tf.float32)
            self.b = tf.Variable([0.5])

        def __call__(self, rows):
            return tf.convert_to_tensor(rows) @ self.w + self.b

    def step(net):
        total = {"w": 0.0, "b": 0.0}
        for start, stop in BATCHES:
            with tf.GradientTape(persistent=True) as tape:
                value = tf.reduce_mean((net(ROWS[start:stop]) - TARGET[start:stop]) ** 2)
            weight = 1 if fault else (stop - start) / 10
            total = {n: t + weight * tape.gradient(value, getattr(net, n)) for n, t in total.items()}
        return total

    return (Net(), step), {"loss": lambda net: tf.reduce_mean((net(ROWS) - TARGET) ** 2)}


#: By framework: the program, and what names its fault; None: nothing does, it is seen.
STEPS = {
    "numpy": [(numpy_ranks, "1 / world size, 2"), (numpy_accumulation, "micro-batches, 2")],
    "jax": [(jax_accumulation, "micro-batches, 2"), (jax_clipped, "GA304")],
    "tensorflow": [(keras_apply, "GA304"), (keras_train_step, "batch, 10"), (tensorflow_module, None)],
}
WEIGHTS = "micro-batch 3 (2 of 10 rows) counts {} times"
STEPS["tensorflow"] += [(keras_accumulation, WEIGHTS.format("1.67")), (tensorflow_sum, WEIGHTS.format("5"))]
CASES = [case for framework, cases in STEPS.items() if framework in TESTED for case in cases]
__test__ = bool(CASES)


@pytest.mark.parametrize(("program", "named"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_fault_is_seen_and_its_right_version_agrees(program, named):
    given, options = program(fault=True)
    report = gradaudit.audit_step(*given, **options)
    assert report.verdict is Verdict.DISAGREE, str(report)
    if named is not None:
        assert named in str(report.findings[0]), str(report)
    given, options = program(fault=False)
    report = gradaudit.audit_step(*given, **options)
    assert report.verdict is Verdict.AGREE, str(report)


@pytest.mark.parametrize("returned", [None, 3.0, {"w": np.ones(2)}])
@pytest.mark.parametrize("framework", [name for name in STEPS if name in TESTED])
def test_a_step_without_a_gradient(framework, returned):
    program = STEPS[framework][-1][0]
    (target, _), options = program(fault=False)
    with pytest.raises(ModelContractError, match="gradient"):
        gradaudit.audit_step(target, lambda target: returned, **options)


#: Of these the step returns its objective, too.
RETURNED = {"numpy": [numpy_ranks], "jax": [jax_accumulation, jax_clipped], "tensorflow": [keras_apply]}
#: Of these it returns none: a gradient alone, a dict of running means.
NOT_RETURNED = {"numpy": numpy_accumulation, "jax": jax_clipped, "tensorflow": keras_train_step}


def without_loss(program, *, fault):
    given, options = program(fault=fault)
    return given, {name: value for name, value in options.items() if name != "loss"}


@pytest.mark.parametrize("program", [p for framework in STEPS if framework in TESTED for p in RETURNED[framework]])
def test_the_loss_that_is_returned_is_the_objective(program):
    given, options = without_loss(program, fault=True)
    assert gradaudit.audit_step(*given, **options).verdict is Verdict.DISAGREE
    given, options = without_loss(program, fault=False)
    report = gradaudit.audit_step(*given, **options)
    assert report.verdict is Verdict.AGREE, str(report)
    (target, step), options = program(fault=False)
    assert report.loss == pytest.approx(gradaudit.audit_step(target, step, **options).loss, rel=1e-5)


@pytest.mark.parametrize("framework", [name for name in STEPS if name in TESTED])
def test_no_loss_is_returned(framework):
    (target, step), options = without_loss(NOT_RETURNED[framework], fault=False)

    def gradient_alone(target):
        returned = step(target)
        return returned[1] if isinstance(returned, tuple) else returned

    with pytest.raises(ModelContractError, match="no loss= is given"):
        gradaudit.audit_step(target, gradient_alone, **options)


def numbers(framework):
    """``a^2 + b`` of two numbers: the target, the loss, and a step that returns the gradient alone, two numbers."""
    if framework == "numpy":
        target = {"a": np.array(2.0), "b": np.array(3.0)}
        return target, lambda p: p["a"] ** 2 + p["b"], lambda p: {"a": 2 * p["a"], "b": np.array(1.0)}
    if framework == "jax":
        from jax import numpy as jnp

        target = jnp.asarray(2.0), jnp.asarray(3.0)
        return target, lambda p: p[0] ** 2 + p[1], lambda p: (2 * p[0], jnp.ones(()))
    import tensorflow as tf

    target = tf.Module()
    target.a, target.b = tf.Variable(2.0), tf.Variable(3.0)
    return target, lambda p: p.a**2 + p.b, lambda p: [2 * p.a, tf.constant(1.0)]


@pytest.mark.parametrize("framework", [name for name in STEPS if name in TESTED])
def test_a_gradient_of_numbers_is_no_loss(framework):
    target, loss, step = numbers(framework)
    with pytest.raises(ModelContractError, match="no loss= is given"):
        gradaudit.audit_step(target, step)
    report = gradaudit.audit_step(target, lambda p: (loss(p), step(p)))
    assert report.verdict is Verdict.AGREE, str(report)


def two_layers(framework, change):
    """Micro-batches' gradients, added, of a float32 network; ``change`` is made to those of its first tensor."""
    if framework == "tensorflow":
        import tensorflow as tf

        net, loss = keras_net()

        def step(net):
            total = [0] * 4
            for i in range(0, 10, 2):
                with tf.GradientTape() as tape:
                    value = tf.reduce_mean((net(ROWS[i : i + 2]) - TARGET[i : i + 2]) ** 2) / 5
                total = [t + g for t, g in zip(total, tape.gradient(value, net.trainable_variables), strict=True)]
            return [tf.constant(change(total[0].numpy())), *total[1:]]

        return net, step, loss
    import jax
    from jax import numpy as jnp

    rng = np.random.default_rng(1)

    def loss(p, rows=slice(None)):
        return jnp.mean((jnp.tanh(ROWS[rows] @ p["a"]) @ p["b"] - TARGET[rows]) ** 2)

    def step(p):
        parts = [jax.grad(loss)(p, slice(i, i + 2)) for i in range(0, 10, 2)]
        found = {n: sum(part[n] for part in parts) / 5 for n in p}
        return {**found, "a": jnp.asarray(change(np.array(found["a"])))}

    return {n: jnp.asarray(rng.standard_normal(s), "float32") for n, s in (("a", (4, 5)), ("b", (5, 1)))}, step, loss


def one_entry(g):
    g[2, 3] += 0.05
    return g


#: Whose float32 networks have a float64 twin.
FLOAT32 = [name for name in STEPS if name in TESTED and name != "numpy"]


class TestFloat32:
    __test__ = bool(FLOAT32)

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda g: g, None),
            (lambda g: -g, "GA303"),
            (lambda g: g * np.float32(0.1), "GA301"),
            (lambda g: g * np.float32(1.01), "GA301"),
            (one_entry, "GA405"),
        ],
        ids=["right", "negative", "a tenth", "one per cent", "one entry"],
    )
    @pytest.mark.parametrize("framework", FLOAT32)
    def test_what_is_wrong_with_one_tensor_is_named(self, framework, change, code):
        """The twin's gradient is right: what the step's is off by moves from point to point as rounding does."""
        target, step, loss = two_layers(framework, change)
        report = gradaudit.audit_step(target, step, loss=loss)
        assert report.source == "a float64 twin"
        assert [finding.code for finding in report.findings] == ([] if code is None else [code]), str(report)
        assert sum(p.verdict is not Verdict.AGREE for p in report.parameters) == (code is not None)


class TestKeras:
    __test__ = "tensorflow" in TESTED

    @pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
    @pytest.mark.parametrize("program", [keras_apply, keras_train_step])
    def test_nothing_is_updated(self, program, error):
        import keras
        import tensorflow as tf

        (net, step), options = program(fault=True)
        optimizers = [net.optimizer] if getattr(net, "optimizer", None) is not None else []
        every = [*net.variables, *net.metrics_variables, *(v for o in optimizers for v in o.variables)]
        before = [v.numpy() for v in every]
        patched = keras.optimizers.Optimizer, tf.GradientTape, type(net)
        attributes = [dict(vars(cls)) for cls in patched]

        def failing(net):
            step(net)
            if error is not None:
                raise error

        if error is None:
            gradaudit.audit_step(net, failing, **options)
        else:
            with pytest.raises(error):
                gradaudit.audit_step(net, failing, **options)
        assert all(np.array_equal(b, v.numpy()) for b, v in zip(before, every, strict=True))
        assert [dict(vars(cls)) for cls in patched] == attributes
        assert not tf.config.functions_run_eagerly()

    def test_equal_micro_batches_that_are_not_divided_are_a_factor(self):
        import tensorflow as tf

        net, loss = keras_net()

        def step(net):
            total = None
            for start, stop in ((0, 5), (5, 10)):
                with tf.GradientTape() as tape:
                    value = tf.reduce_mean((net(ROWS[start:stop]) - TARGET[start:stop]) ** 2)
                grads = tape.gradient(value, net.trainable_variables)
                total = grads if total is None else [t + g for t, g in zip(total, grads, strict=True)]
            return total

        report = gradaudit.audit_step(net, step, loss=loss)
        assert [f.code for f in report.findings] == ["GA301"], str(report)
        assert "micro-batches, 2" in report.findings[0].sentence

    def test_dropout_draws_for_the_loss_what_it_draws_for_the_gradient(self):
        import keras
        import tensorflow as tf

        keras.utils.set_random_seed(0)
        net = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD()

        def step(net, factor=1.0):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean((net(ROWS, training=True) - TARGET) ** 2)
            grads = [factor * g for g in tape.gradient(value, net.trainable_variables)]
            optimizer.apply_gradients(zip(grads, net.trainable_variables, strict=True))
            return value

        before = [v.numpy() for v in net.variables]
        report = gradaudit.audit_step(net, step)
        assert report.verdict is Verdict.AGREE, str(report)
        assert report.source == "the float32 loss itself"
        assert gradaudit.audit_step(net, lambda net: step(net, 1.2)).verdict is Verdict.DISAGREE
        assert all(np.array_equal(b, v.numpy()) for b, v in zip(before, net.variables, strict=True))

    def test_the_loss_of_the_last_micro_batch_is_another(self):
        given, _ = tensorflow_module(fault=False)
        assert gradaudit.audit_step(*given).verdict is Verdict.DISAGREE
