"""Modules, pytrees and models as people write them, unchanged: right ones agree, and a fault is named with its line.

Without options, in float32. What is collected follows the backends that are tested; nothing is skipped silently.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.errors import AmbiguousBackendError, ModelContractError
from tests import conftest
from tests.backends.cutting import marked

TESTED = conftest.tested()
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((8, 4)).astype("float32")
SEQUENCES = RNG.standard_normal((8, 6, 4)).astype("float32")
IMAGES = RNG.standard_normal((6, 8, 8, 3)).astype("float32")
CLASSES = RNG.integers(3, size=8)
TOKENS = RNG.integers(20, size=(3, 10))


def right(target, at=None, *, findings=(), source="a float64 twin", **options):
    report = gradaudit.audit(target, at, **options)
    assert report.verdict is Verdict.AGREE, str(report)
    assert [f.code for f in report.findings] == list(findings), str(report)
    assert report.source == source
    return report


def wrong(target, at=None, *, code, line=None, **options):
    report = gradaudit.audit(target, at, **options)
    assert report.verdict is Verdict.DISAGREE, str(report)
    found = report.findings[0]
    assert found.code == code, str(report)
    if line is not None:
        assert (found.confidence, f"test_what_people_have.py:{line}" in found.title) == ("proven", True), str(report)
    return report


def of_nothing(target, at=None, **options):
    report = gradaudit.audit(target, at, **options)
    assert (report.verdict, [f.code for f in report.findings]) == (Verdict.INCONCLUSIVE, ["GA704"]), str(report)


class TestNumpy:
    __test__ = "numpy" in TESTED

    @staticmethod
    def rosenbrock(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    @staticmethod
    def rosenbrock_gradient(x):
        g = np.zeros_like(x)
        inner = x[1:] - x[:-1] ** 2
        g[:-1] = -400 * x[:-1] * inner - 2 * (1 - x[:-1])
        g[1:] += 200 * inner
        return g

    def test_a_pair_as_scipy_has_it(self):
        at = [1.3, 0.7, 0.8, 1.9, 1.2]
        report = right(self.rosenbrock, at, gradient=self.rosenbrock_gradient, source="the float64 loss itself")
        assert [p.name for p in report.parameters] == ["x"]
        assert report.target == "rosenbrock"
        twice = gradaudit.audit(self.rosenbrock, at, gradient=lambda x: 2 * self.rosenbrock_gradient(x))
        assert [f.code for f in twice.findings] == ["GA301"]

    def test_loss_and_gradient_in_one(self):
        both = lambda x: (self.rosenbrock(x), self.rosenbrock_gradient(x))  # noqa: E731
        right(both, np.array([1.3, 0.7, 0.8]), gradient=True, source="the float64 loss itself")

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_gradient_by_autograd(self, dtype):
        import autograd
        from autograd import numpy as anp

        x, at = ROWS.astype(dtype), {"a": np.linspace(-1, 1, 20, dtype=dtype).reshape(4, 5), "b": np.ones(5, dtype)}
        loss = lambda p: anp.mean(anp.dot(anp.tanh(anp.dot(x, p["a"])), p["b"]) ** 2)  # noqa: E731
        source = "a float64 twin" if dtype == "float32" else "the float64 loss itself"
        right(loss, at, gradient=autograd.grad(loss), source=source)
        both = autograd.value_and_grad(loss)
        twice = lambda p: (both(p)[0], {n: 2 * g for n, g in both(p)[1].items()})  # noqa: E731
        assert [f.code for f in gradaudit.audit(twice, at, gradient=True).findings] == ["GA301"]

    def test_named_arrays(self):
        at = {"a": np.float64([0.3, 0.7]), "b": [1, 2]}
        loss = lambda p: (np.sin(p["a"]) * p["b"]).sum()  # noqa: E731
        gradient = lambda p: {"a": np.cos(p["a"]) * p["b"], "b": np.sin(p["a"])}  # noqa: E731
        right(loss, at, gradient=gradient, source="the float64 loss itself")

    @pytest.mark.parametrize("cast", ["loss", "gradient"])
    def test_a_float32_pair_that_is_float32_inside(self, cast):
        narrow = {
            name: (lambda x: x.astype("float32")) if name == cast else lambda x: x for name in ("loss", "gradient")
        }
        loss = lambda x: self.rosenbrock(narrow["loss"](x))  # noqa: E731
        gradient = lambda x: self.rosenbrock_gradient(narrow["gradient"](x))  # noqa: E731
        right(loss, np.float32([1.3, 0.7, 0.8]), gradient=gradient, source="the float32 loss itself")

    def test_a_gradient_of_another_form(self):
        with pytest.raises(ModelContractError, match="the gradient is a list"):
            gradaudit.audit(lambda p: p["a"].sum(), {"a": np.ones(2)}, gradient=lambda p: [1.0, 1.0])

    @pytest.mark.parametrize("together", [False, True])
    def test_a_gradient_of_another_name(self, together):
        at = {"w": np.ones(3), "b": np.ones(2)}
        loss = lambda p: np.sin(p["w"]).sum()  # noqa: E731

        def audited(gradient):
            both = lambda p: (loss(p), gradient(p))  # noqa: E731
            return gradaudit.audit(both if together else loss, at, gradient=together or gradient)

        # no gradient is a missing one, which is right for b
        assert audited(lambda p: {"w": np.cos(p["w"])}).verdict is Verdict.AGREE
        with pytest.raises(ModelContractError, match="the gradient has 'W', 'bias', and no parameter is") as e:
            audited(lambda p: {"W": np.cos(p["w"]), "bias": np.zeros(2)})
        assert e.value.hint.startswith("the parameters are 'w', 'b'")

    def test_a_function_without_a_gradient(self):
        with pytest.raises(AmbiguousBackendError, match="cannot audit a function at a ndarray"):
            gradaudit.audit(lambda x: x.sum(), np.ones(2))

    def test_an_option_that_does_not_exist(self):
        with pytest.raises(gradaudit.errors.OptionError, match="there is no step or tolerance to tune"):
            gradaudit.audit(lambda x: x.sum(), np.ones(2), gradient=np.ones_like, eps=1e-6)


class TestTorch:
    __test__ = "torch" in TESTED

    @pytest.fixture
    def torch(self):
        import torch

        torch.manual_seed(0)
        return torch

    def test_an_lstm(self, torch):
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = torch.nn.LSTM(4, 5, batch_first=True)
                self.out = torch.nn.Linear(5, 3)

            def forward(self, x):
                return self.out(self.lstm(x)[0][:, -1])

        net, x, y = Net(), torch.from_numpy(SEQUENCES), torch.from_numpy(CLASSES)
        report = right(net, loss=lambda net: torch.nn.functional.cross_entropy(net(x), y))
        assert {p.name for p in report.parameters} == {n for n, _ in net.named_parameters()}
        assert all(not layer._forward_pre_hooks for layer in net.modules())

    def test_a_transformer_layer_with_dropout(self, torch):
        layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        x = torch.from_numpy(SEQUENCES)
        right(layer, loss=lambda layer: layer(x).sin().mean(), findings=["GA801"])
        assert layer.training

    def test_batch_norm_leaves_its_statistics(self, torch):
        nn = torch.nn
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        x, y = torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(CLASSES[:6])
        before = {n: b.clone() for n, b in net.state_dict().items()}
        right(net, loss=lambda net: nn.functional.cross_entropy(net(x), y))
        assert all(torch.equal(before[n], b) for n, b in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())

    def test_tied_weights_and_attention(self, torch):
        nn = torch.nn

        class Gpt(nn.Module):
            def __init__(self):
                super().__init__()
                self.tokens, self.qkv, self.norm = nn.Embedding(20, 8), nn.Linear(8, 24), nn.LayerNorm(8)
                self.head = nn.Linear(8, 20, bias=False)
                self.head.weight = self.tokens.weight

            def forward(self, i):
                x = self.tokens(i)
                q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
                return self.head(x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))

        tokens = torch.from_numpy(TOKENS)
        loss = lambda net: nn.functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())  # noqa: E731
        report = right(Gpt(), loss=loss)
        assert "head.weight" not in {p.name for p in report.parameters}

    def test_frozen_parameters_are_constants(self, torch):
        net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        net[0].requires_grad_(False)
        x = torch.from_numpy(ROWS)
        report = right(net, loss=lambda net: net(x).square().mean())
        assert {p.name for p in report.parameters} == {"2.weight", "2.bias"}

    def test_parameters_of_two_dtypes(self, torch):
        class Mixed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.outer = torch.nn.Linear(4, 5), torch.nn.Linear(5, 1).double()

            def forward(self, x):
                return self.outer(torch.tanh(self.inner(x)).double())

        net, x = Mixed(), torch.from_numpy(ROWS)
        report = gradaudit.audit(net, loss=lambda net: net(x).square().mean())
        assert report.verdict is Verdict.AGREE, str(report)
        assert {p.dtype for p in net.parameters()} == {torch.float32, torch.float64}

    def test_a_loss_that_casts_to_float32(self, torch):
        net, x = torch.nn.Linear(4, 5), torch.from_numpy(ROWS)
        softmax = torch.nn.functional.softmax
        losses = [
            lambda net: net(x).float().square().mean(),
            lambda net: net(x).to(torch.float32).square().mean(),
            lambda net: softmax(net(x), dim=-1, dtype=torch.float32)[:, 0].mean(),
        ]
        for loss in losses:
            right(net, loss=loss)
        # what is float64 of its own computes as it is written
        inside = gradaudit.audit(net.double(), loss=lambda net: net(x.double()).float().square().mean().double())
        assert "GA702" in [f.code for f in inside.findings], str(inside)

    @pytest.mark.parametrize("inside", [False, True])
    def test_a_compiled_module(self, torch, inside):
        net, x = (
            torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)),
            torch.from_numpy(ROWS),
        )
        compiled = torch.compile(net, backend="aot_eager")
        right(net if inside else compiled, loss=lambda net: (compiled if inside else net)(x).square().mean())
        torch.compiler.reset()

    def test_a_function_of_containers(self, torch):
        at = {"w": torch.randn(4, 3), "rest": [torch.randn(3), 7, torch.arange(3)]}
        x = torch.from_numpy(ROWS)
        report = right(lambda t: (torch.tanh(x @ t["w"]) * t["rest"][0] * t["rest"][2]).sum(), at)
        assert {p.name for p in report.parameters} == {"w", "rest.0"}

    def block(self, torch):
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = torch.nn.Linear(4, 4)

            def forward(self, x):
                a = torch.tanh(self.linear(x))
                return a + torch.sin(x * a.detach())  # CUT

        return Block

    @pytest.mark.parametrize("compiled", [False, True])
    def test_a_cut_in_a_module(self, torch, compiled):
        block = self.block(torch)
        (line,) = marked(block.forward)
        net, x = torch.nn.Sequential(block(), block()), torch.from_numpy(ROWS)
        run = torch.compile(net, backend="eager") if compiled else net
        wrong(run, code="GA101", line=line, loss=lambda net: net(x).square().mean())

    def test_a_cut_under_activation_checkpointing(self, torch):
        from torch.utils.checkpoint import checkpoint

        block = self.block(torch)
        (line,) = marked(block.forward)
        net, x = block(), torch.from_numpy(ROWS).requires_grad_()  # reentrant checkpoints need an input that records
        wrong(net, code="GA101", line=line, loss=lambda net: checkpoint(net, x, use_reentrant=False).square().mean())
        with pytest.raises(ModelContractError, match="use_reentrant=False"):
            gradaudit.audit(net, loss=lambda net: checkpoint(net, x, use_reentrant=True).square().mean())
        assert x.grad is None
        assert all(p.grad is None for p in net.parameters())

    def test_a_parameter_that_the_loss_freezes(self, torch):
        at = {"a": torch.ones(3), "b": torch.ones(3)}
        report = wrong(lambda p: (p["a"].requires_grad_(False) * p["b"]).sin().sum(), at, code="GA201")
        assert report.findings[0].parameters == ("a",)

    def test_the_loss_of_another_module(self, torch):
        a, b = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
        of_nothing(a, loss=lambda a: b(torch.from_numpy(ROWS)).square().mean())
        right(a, loss=lambda a: (a(torch.from_numpy(ROWS)) - b(torch.from_numpy(ROWS))).square().mean())

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_an_empty_parameter(self, torch):
        net = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 1), "lora": torch.nn.Linear(4, 0)})
        x = torch.from_numpy(ROWS)
        for wanted in ("*", "a.*"):
            report = right(net, loss=lambda net: net["a"](x).square().mean() + net["lora"](x).sum(), parameters=wanted)
            assert {p.name for p in report.parameters} == {"a.weight", "a.bias"}
        joined = gradaudit.audit_operator(lambda a, b: torch.cat([a.sin(), b]), x, torch.ones(0, 4))
        assert joined.verdict is Verdict.AGREE

    def test_a_module_without_a_loss(self, torch):
        with pytest.raises(ModelContractError, match="a Linear alone has no loss"):
            gradaudit.audit(torch.nn.Linear(2, 2))

    def test_a_module_without_parameters(self, torch):
        with pytest.raises(ModelContractError, match="no parameter of the ReLU requires a gradient"):
            gradaudit.audit(torch.nn.ReLU(), loss=lambda net: net(torch.ones(2)).sum())


class TestJax:
    __test__ = "jax" in TESTED

    @staticmethod
    def rnn(p):
        import jax
        from jax import numpy as jnp

        def step(h, x):
            return jnp.tanh(x @ p["W"] + h @ p["R"]), None

        h, _ = jax.lax.scan(step, jnp.zeros(5), ROWS)
        return h @ p["out"][0]

    @pytest.mark.parametrize("jitted", [False, True])
    def test_a_scan_over_a_pytree(self, jitted):
        import jax
        from jax import numpy as jnp

        at = {"W": 0.1 * jnp.ones((4, 5)), "R": 0.5 * jnp.eye(5), "out": [jnp.ones(5), 3, None]}
        report = right(jax.jit(self.rnn) if jitted else self.rnn, at)
        assert {p.name for p in report.parameters} == {"W", "R", "out.0"}

    def test_an_empty_array(self):
        from jax import numpy as jnp

        at = {"W": 0.1 * jnp.ones((4, 5)), "R": 0.5 * jnp.eye(5), "out": [jnp.ones(5), jnp.ones((0, 3))]}
        report = right(lambda p: self.rnn(p) + p["out"][1].sum(), at)
        assert {p.name for p in report.parameters} == {"W", "R", "out.0"}

    @pytest.mark.parametrize("jitted", [False, True])
    def test_the_loss_of_other_weights(self, jitted):
        import jax
        from jax import numpy as jnp

        at = {"W": 0.1 * jnp.ones((4, 5)), "R": 0.5 * jnp.eye(5), "out": [jnp.ones(5)]}
        loss = lambda p: self.rnn(at)  # noqa: E731
        of_nothing(jax.jit(loss) if jitted else loss, at)

    @pytest.mark.parametrize("jitted", [False, True])
    def test_an_equinox_module(self, jitted):
        import equinox as eqx
        import jax
        from jax import numpy as jnp

        net = eqx.nn.MLP(4, 2, 8, 2, key=jax.random.key(0))
        loss = lambda net: jnp.mean(jax.vmap(net)(ROWS) ** 2)  # noqa: E731
        report = right(net, loss=eqx.filter_jit(loss) if jitted else loss)
        assert "layers.0.weight" in {p.name for p in report.parameters}

    def test_a_cut_in_a_jitted_equinox_module(self):
        import equinox as eqx
        import jax
        from jax import numpy as jnp

        class Block(eqx.Module):
            linear: eqx.nn.Linear

            def __call__(self, x):
                a = jnp.tanh(self.linear(x))
                return a + jnp.sin(x * jax.lax.stop_gradient(a))  # CUT

        (line,) = marked(Block.__call__)
        net = eqx.nn.Sequential([eqx.nn.Lambda(Block(eqx.nn.Linear(4, 4, key=jax.random.key(i)))) for i in range(2)])
        wrong(net, code="GA101", line=line, loss=eqx.filter_jit(lambda net: jnp.mean(jax.vmap(net)(ROWS) ** 2)))

    def test_flax(self):
        import jax
        from flax import linen, nnx
        from jax import numpy as jnp

        layer = linen.Dense(3)
        variables = layer.init(jax.random.key(0), ROWS)
        report = right(lambda v: jnp.mean(jnp.sin(layer.apply(v, ROWS))), variables)
        assert {p.name for p in report.parameters} == {"params.kernel", "params.bias"}

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.inner, self.norm = nnx.Linear(4, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
                self.outer = nnx.Linear(5, 1, rngs=rngs)

            def __call__(self, x):
                return self.outer(nnx.relu(self.norm(self.inner(x))))

        net = Net(nnx.Rngs(0))
        before = np.array(net.norm.mean)
        right(net, loss=lambda net: jnp.mean(net(ROWS) ** 2))
        assert np.array_equal(before, net.norm.mean)

    @pytest.mark.parametrize("jitted", [False, True])
    def test_labels_of_numpy(self, jitted):
        """JAX 0.10 keeps what it has made of a NumPy array, and with 64-bit defaults takes it for another dtype."""
        import jax
        from jax import numpy as jnp

        labels = CLASSES.astype("int64")

        def entropy(p):
            h = jnp.tanh(ROWS @ p["w"])
            return -jnp.mean(jax.nn.log_softmax(h @ p["v"])[jnp.arange(8), labels])

        at = {"w": jnp.ones((4, 5)) * jnp.arange(5), "v": jnp.ones((5, 3)) * jnp.arange(3.0)}
        loss = jax.jit(entropy) if jitted else entropy
        right(loss, at)
        assert jax.jit(lambda p: 2 * loss(p))(at).dtype == jnp.float32
        assert not jax.config.jax_enable_x64

    def test_haiku(self):
        import haiku as hk
        import jax
        from jax import numpy as jnp

        def perceptron(x):
            return hk.nets.MLP([8, 1])(x)

        net = hk.without_apply_rng(hk.transform(perceptron))
        report = right(lambda p: jnp.mean(net.apply(p, ROWS) ** 2), net.init(jax.random.key(0), ROWS))
        assert {p.name for p in report.parameters} == {
            f"mlp/~/linear_{i}.{name}" for i in range(2) for name in ("w", "b")
        }

    def test_arrays_of_numpy_are_nobodys(self):
        with pytest.raises(AmbiguousBackendError):
            gradaudit.audit(self.rnn, {"W": np.ones((4, 5))})


class TestTensorflow:
    __test__ = "tensorflow" in TESTED

    @pytest.fixture
    def keras(self):
        import keras

        keras.utils.set_random_seed(0)
        return keras

    def test_a_keras_lstm(self, keras):
        net = keras.Sequential([keras.layers.Input((6, 4)), keras.layers.LSTM(5), keras.layers.Dense(3)])
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        own = keras.Loss.dtype
        report = right(net, loss=lambda net: entropy(CLASSES, net(SEQUENCES)))
        assert {p.name for p in report.parameters} == {v.path for v in net.trainable_variables}
        assert keras.Loss.dtype is own
        assert {layer.compute_dtype for layer in net._flatten_layers()} == {"float32"}

    def test_an_empty_variable(self):
        import tensorflow as tf

        at = [tf.Variable([1.0, 2.0, 3.0]), tf.Variable(tf.ones((0, 2)))]
        report = right(lambda v: tf.reduce_sum(tf.sin(v[0])) + tf.reduce_sum(v[1]), at)
        assert {p.name for p in report.parameters} == {"0"}

    def test_the_loss_of_another_model(self, keras):
        a, b = (keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)]) for _ in range(2))
        of_nothing(a, loss=lambda a: keras.ops.mean(keras.ops.square(b(ROWS))))
        right(a, loss=lambda a: keras.ops.mean(keras.ops.square(a(ROWS) - 1)))

    def test_convolution_and_batch_norm_leave_the_weights(self, keras):
        layers = keras.layers
        net = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()])
        net.add(layers.ReLU())
        before = [w.numpy() for w in net.weights]
        right(net, loss=lambda net: keras.ops.mean(keras.ops.sin(net(IMAGES, training=True))))
        assert all(np.array_equal(b, w.numpy()) for b, w in zip(before, net.weights, strict=True))

    def test_a_function_of_variables(self):
        import tensorflow as tf

        at = [tf.Variable([1.0, 2.0, 3.0]), tf.constant(2.0), tf.constant(7)]
        report = right(lambda v: tf.reduce_sum(tf.sin(v[0]) * v[1]), at)
        assert {p.name for p in report.parameters} == {"0", "1"}

    def test_a_cut_in_a_keras_layer(self, keras):
        class Gate(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(4)

            def call(self, x):
                a = keras.ops.tanh(self.dense(x))
                return a * keras.ops.stop_gradient(keras.ops.sigmoid(a))  # CUT

        (line,) = marked(Gate.call)
        net = keras.Sequential([keras.layers.Input((4,)), Gate(), Gate()])
        wrong(net, code="GA101", line=line, loss=lambda net: keras.ops.mean(net(ROWS) ** 2))

    def test_a_saved_model_has_no_lines_and_that_is_said(self, tmp_path):
        import tensorflow as tf

        class Net(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec((4, 5)), tf.TensorSpec((5,))])
            def loss(self, a, b):
                h = tf.tanh(ROWS @ a)
                return tf.reduce_mean(tf.linalg.matvec(h * tf.stop_gradient(tf.sin(h)), b) ** 2)

        tf.saved_model.save(Net(), str(tmp_path))
        saved = tf.saved_model.load(str(tmp_path))
        at = [tf.constant(RNG.standard_normal((4, 5)), tf.float32), tf.constant(RNG.standard_normal(5), tf.float32)]
        report = wrong(lambda p: saved.loss(*p), at, code="GA901")
        assert "Seen, and not shown to explain it: stop_gradient in a graph at" in report.findings[0].sentence

    @staticmethod
    def module():
        import tensorflow as tf

        class Dense(tf.Module):
            def __init__(self, n, m):
                super().__init__()
                self.w, self.b = tf.Variable(tf.ones((n, m)) / n), tf.Variable(tf.zeros(m))
                self.calls = tf.Variable(0.0, trainable=False)

            @tf.function
            def __call__(self, x):
                self.calls.assign_add(1.0)
                return tf.tanh(tf.cast(x, self.w.dtype) @ self.w + self.b)

        class Net(tf.Module):
            cut = False

            def __init__(self):
                super().__init__()
                self.layers, self.out = [Dense(4, 5), Dense(5, 5)], {"head": Dense(5, 1)}

            @tf.function
            def __call__(self, x):
                for layer in self.layers:
                    x = layer(x)
                if self.cut:
                    x = x * tf.stop_gradient(tf.sigmoid(x))  # CUT
                return self.out["head"](x)

        return Net()

    def test_a_module_of_tensorflow(self, tmp_path):
        import tensorflow as tf

        net = self.module()
        net(ROWS)  # traced: its functions hold the variables
        before = [v.numpy() for v in net.variables]
        loss = lambda net: tf.reduce_mean((net(ROWS) - 1) ** 2)  # noqa: E731
        report = right(net, loss=loss)
        assert {"layers.0.w", "layers.1.b", "out.head.w"} < {p.name for p in report.parameters}
        assert len(report.parameters) == 6
        assert all(np.array_equal(b, v.numpy()) for b, v in zip(before, net.variables, strict=True))
        assert not tf.config.functions_run_eagerly()
        tf.train.Checkpoint(net=net).write(str(tmp_path / "saved"))

        def failing(net):
            net(ROWS)
            raise RuntimeError

        with pytest.raises(RuntimeError):
            gradaudit.audit(net, loss=failing)
        assert not tf.config.functions_run_eagerly()
        assert all(isinstance(layer.w, tf.Variable) for layer in net.layers)
        net.cut = True
        (line,) = marked(type(net).__call__.python_function)
        wrong(net, code="GA101", line=line, loss=loss)

    def test_a_module_of_tensorflow_alone(self):
        import tensorflow as tf

        with pytest.raises(ModelContractError, match="a Net alone has no loss"):
            gradaudit.audit(self.module())
        with pytest.raises(ModelContractError, match="no variable of the Module is trainable"):
            gradaudit.audit(tf.Module(), loss=lambda module: tf.constant(1.0))

    @pytest.mark.parametrize("traced", [False, True])
    def test_a_loss_with_a_tape_of_its_own(self, traced):
        import tensorflow as tf

        points = tf.constant(ROWS[:, :1])

        def residual(v):
            x = tf.cast(points, v[0].dtype)
            with tf.GradientTape() as tape:
                tape.watch(x)
                u = tf.tanh(x @ v[0]) @ v[1]
            return tf.reduce_mean((tape.gradient(u, x) - 1) ** 2)

        at = [tf.Variable(tf.linspace([0.5], [1.5], 5, axis=1)), tf.Variable(tf.ones((5, 1)))]
        right(tf.function(residual) if traced else residual, at)

    def test_a_model_that_was_not_built(self, keras):
        with pytest.raises(ModelContractError, match=r"no variable of the Dense is trainable \(was it built\?\)"):
            gradaudit.audit(keras.layers.Dense(2), loss=lambda net: keras.ops.sum(net(ROWS)))


KERAS = """
import keras
import numpy as np
import gradaudit

keras.utils.set_random_seed(0)
layers, rng = keras.layers, np.random.default_rng(0)
x, images = rng.standard_normal((8, 6, 4)).astype("float32"), rng.standard_normal((6, 8, 8, 3)).astype("float32")
y = (np.arange(8) % 3).astype("int32")
entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Gate(layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    def call(self, x):
        a = keras.ops.tanh(self.dense(x))
        return a * keras.ops.stop_gradient(keras.ops.sigmoid(a))  # CUT


recurrent = keras.Sequential([layers.Input((6, 4)), layers.LSTM(5), layers.Dense(3)])
conv = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()])
conv.add(layers.Dropout(0.1))
gate = keras.Sequential([layers.Input((4,)), Gate()])
losses = {
    "recurrent": (recurrent, lambda net: entropy(y, net(x))),
    "conv": (conv, lambda net: keras.ops.mean(keras.ops.sin(net(images, training=True)))),
    "gate": (gate, lambda net: keras.ops.mean(net(x[:, 0]) ** 2)),
}
for name, (net, loss) in losses.items():
    before = [keras.ops.convert_to_numpy(v.value).copy() for v in net.variables]
    report = gradaudit.audit(net, loss=loss)
    after = [keras.ops.convert_to_numpy(v.value) for v in net.variables]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), name
    assert {p.name for p in report.parameters} == {v.path for v in net.trainable_variables}
    assert {layer.compute_dtype for layer in net._flatten_layers()} == {"float32"}
    computing = keras.config.backend()
    assert keras.backend.result_type("float64", "float32") == ("float64" if computing == "tensorflow" else "float32")
    assert report.environment["backend"] == computing
    print(name, computing, report.verdict, report.source, *(f.title for f in report.findings), sep="; ")
try:
    gradaudit.audit(gate)
except gradaudit.errors.ModelContractError as error:
    print(error)
"""


COMPUTING = [name for name in ("torch", "jax", "tensorflow") if name in TESTED]


class TestKeras:
    __test__ = bool(COMPUTING)

    @pytest.mark.parametrize("computing", COMPUTING)
    def test_each_of_its_backends(self, tmp_path, computing):
        """Keras chooses its backend when it is imported: a process for each."""
        (tmp_path / "program.py").write_text(KERAS)
        environment = {**os.environ, "KERAS_BACKEND": computing, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "program.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        recurrent, conv, gate, alone, *_ = done.stdout.splitlines()
        assert recurrent == f"recurrent; {computing}; AGREE; a float64 twin"
        assert conv.startswith(f"conv; {computing}; AGREE; ")
        line = 1 + next(i for i, text in enumerate(KERAS.splitlines()) if "# CUT" in text)
        assert gate.startswith(f"gate; {computing}; DISAGREE; a float64 twin; cut at program.py:{line}")
        assert alone.startswith("a Sequential alone has no loss")
