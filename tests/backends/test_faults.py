"""Models as people build them, each right and with one fault of their own code: what is named, and in which tensor.

A program returns what `gradaudit.audit` takes, positionally and by name; ``faulty`` switches the fault on. The right
version agrees, without options, in float32. Faults of a training step are in `tests.backends.test_step`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from tests import conftest

TESTED = conftest.tested()
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((8, 4)).astype("float32")
SEQUENCES = RNG.standard_normal((6, 5, 4)).astype("float32")
IMAGES = RNG.standard_normal((4, 3, 8, 8)).astype("float32")
TARGET = RNG.standard_normal((8, 1)).astype("float32")
CLASSES = RNG.integers(3, size=6)
TOKENS = RNG.integers(20, size=(3, 9))


# ---------------------------------------------------------------- NumPy


def numpy_logistic_without_n(faulty):
    """Logistic regression as for `scipy.optimize.minimize`, whose gradient is a sum where the loss is a mean."""
    labels = (TARGET[:, 0] > 0).astype("float64")

    def loss(w):
        z = ROWS @ w
        return np.mean(np.logaddexp(0, z) - labels * z)

    def gradient(w):
        return ROWS.T @ (1 / (1 + np.exp(-ROWS @ w)) - labels) / (1 if faulty else len(ROWS))

    return loss, {"at": np.random.default_rng(0).standard_normal(4), "gradient": gradient}


def numpy_perceptron_sign(faulty):
    """A layer's gradient with the sign of a descent direction."""

    def loss(p):
        return np.mean((np.tanh(ROWS @ p["hidden"]) @ p["out"] - TARGET) ** 2)

    def gradient(p):
        h = np.tanh(ROWS @ p["hidden"])
        error = 2 * (h @ p["out"] - TARGET) / len(ROWS)
        hidden = ROWS.T @ (error @ p["out"].T * (1 - h * h))
        return {"hidden": -hidden if faulty else hidden, "out": h.T @ error}

    return loss, {
        "at": {
            "hidden": np.random.default_rng(0).standard_normal((4, 5)),
            "out": np.random.default_rng(0).standard_normal((5, 1)),
        },
        "gradient": gradient,
    }


# ---------------------------------------------------------------- PyTorch


def torch_lstm_gate_sign(faulty):
    """A fused cell with a backward pass by hand, in which the forget gate's sign is wrong."""
    import torch

    class Cell(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gates, c):
            i, f, g, o = gates.chunk(4, dim=1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            new = f * c + i * g
            ctx.save_for_backward(i, f, g, o, c, new)
            return o * new.tanh(), new

        @staticmethod
        def backward(ctx, dh, dc):
            i, f, g, o, c, new = ctx.saved_tensors
            dc = dc + dh * o * (1 - new.tanh() ** 2)
            df = dc * c * f * (1 - f)
            gates = [dc * g * i * (1 - i), -df if faulty else df, dc * i * (1 - g**2), dh * new.tanh() * o * (1 - o)]
            return torch.cat(gates, dim=1), dc * f

    class Lstm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.recurrent = torch.nn.Linear(4, 12), torch.nn.Linear(3, 12, bias=False)

        def forward(self, x):
            h = c = x.new_zeros(len(x), 3)
            for step in x.unbind(1):
                h, c = Cell.apply(self.inner(step) + self.recurrent(h), c)
            return h

    x, y = torch.from_numpy(SEQUENCES), torch.from_numpy(CLASSES)
    return Lstm(), {"loss": lambda net: torch.nn.functional.cross_entropy(net(x), y)}


def torch_mean_squared_without_n(faulty):
    """A loss by hand whose backward pass forgets to divide by N."""
    import torch

    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output, target):
            ctx.save_for_backward(output, target)
            return (output - target).square().mean()

        @staticmethod
        def backward(ctx, grad):
            output, target = ctx.saved_tensors
            return grad * 2 * (output - target) / (1 if faulty else output.numel()), None

    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    return net, {"loss": lambda net: Squared.apply(net(torch.from_numpy(ROWS)), torch.from_numpy(TARGET))}


def torch_transformer_detached(faulty):
    """The second layer of an encoder sees a detached input."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layer = lambda: torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)  # noqa: E731
            self.layers = torch.nn.ModuleList([layer(), layer(), layer()])

        def forward(self, x):
            for i, layer in enumerate(self.layers):
                x = layer(x.detach() if faulty and i == 1 else x)  # FAULT
            return x

    x = torch.from_numpy(SEQUENCES)
    return Encoder(), {"loss": lambda net: net(x).sin().mean()}


def torch_resnet_stale_statistics(faulty):
    """A normalisation by hand whose backward pass takes the running statistics, which are those of before."""
    import torch

    class Normal(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, running):
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            scale = (var + 1e-5).rsqrt()
            y = (x - mean) * scale
            ctx.save_for_backward(y, (running + 1e-5).rsqrt() if faulty else scale)
            return y

        @staticmethod
        def backward(ctx, g):
            y, scale = ctx.saved_tensors
            mean = lambda a: a.mean((0, 2, 3), keepdim=True)  # noqa: E731
            return scale * (g - mean(g) - y * mean(g * y)), None

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 3, padding=1)
            self.register_buffer("running", torch.ones(1, 3, 1, 1))

        def forward(self, x):
            h = torch.relu(Normal.apply(self.first(x), self.running))
            return torch.relu(x + Normal.apply(self.second(h), self.running))

    class ResNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.Sequential(Block(), Block())
            self.head = torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.blocks(x).mean((2, 3)))

    x, y = torch.from_numpy(IMAGES), torch.from_numpy(CLASSES[:4])
    return ResNet(), {"loss": lambda net: torch.nn.functional.cross_entropy(net(x), y)}


def torch_gpt_block_scaled(faulty):
    """A hook left behind from an experiment halves what flows into the values of the attention."""
    import torch

    nn = torch.nn

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.norm, self.qkv = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 24)
            self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, i):
            x = self.tokens(i)
            q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
            if faulty and v.requires_grad:
                v.register_hook(lambda g: g / 2)  # FAULT
            x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.head(x + self.mlp(x))

    tokens = torch.from_numpy(TOKENS)
    return Gpt(), {
        "loss": lambda net: nn.functional.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    }


# ---------------------------------------------------------------- JAX


def jax_equinox_sign(faulty):
    """A swish with a derivative by hand, of which one term has the wrong sign."""
    import equinox as eqx
    import jax
    from jax import numpy as jnp

    @jax.custom_vjp
    def swish(x):
        return x * jax.nn.sigmoid(x)

    def backward(x, g):
        s = jax.nn.sigmoid(x)
        inner = x * s * (1 - s)
        return (g * (s - inner if faulty else s + inner),)

    swish.defvjp(lambda x: (swish(x), x), backward)
    net = eqx.nn.MLP(4, 1, 6, 2, activation=swish, key=jax.random.key(0))
    return net, {"loss": lambda net: jnp.mean((jax.vmap(net)(ROWS) - TARGET) ** 2)}


def jax_flax_scan_cut(faulty):
    """A recurrent net whose state is stopped at each step."""
    import jax
    from flax import nnx
    from jax import numpy as jnp

    class Rnn(nnx.Module):
        def __init__(self, rngs):
            self.inner, self.recurrent = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)
            self.out = nnx.Linear(5, 1, rngs=rngs)

        def __call__(self, x):
            def step(h, source):
                h = jax.lax.stop_gradient(h) if faulty else h  # FAULT
                h = jnp.tanh(source + self.recurrent(h))
                return h, h

            h, _ = jax.lax.scan(step, jnp.zeros((len(x), 5)), jnp.swapaxes(self.inner(x), 0, 1))
            return self.out(h)

    return Rnn(nnx.Rngs(0)), {"loss": lambda net: jnp.mean(net(SEQUENCES) ** 2)}


def jax_flax_mean_without_n(faulty):
    """A loss by hand whose backward pass forgets to divide by N."""
    import jax
    from flax import nnx
    from jax import numpy as jnp

    @jax.custom_vjp
    def squared(x, y):
        return jnp.mean((x - y) ** 2)

    def backward(saved, g):
        x, y = saved
        return g * 2 * (x - y) / (1 if faulty else x.size), None

    squared.defvjp(lambda x, y: (squared(x, y), (x, y)), backward)
    return nnx.Linear(4, 1, rngs=nnx.Rngs(0)), {"loss": lambda net: squared(net(ROWS), TARGET)}


# ---------------------------------------------------------------- Keras


def keras_lstm_detached(faulty):
    """The second of two layers gets a stopped input."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers

    class Stacked(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = layers.LSTM(4, return_sequences=True, name="first"), layers.LSTM(3, name="second")

        def call(self, x):
            h = self.first(x)
            return self.second(keras.ops.stop_gradient(h) if faulty else h)  # FAULT

    net = Stacked()
    net(SEQUENCES)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return net, {"loss": lambda net: entropy(CLASSES, net(SEQUENCES))}


def keras_convolution_mean_without_n(faulty):
    """A pooling with a gradient by hand that forgets to divide by the number of pixels."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    layers = keras.layers

    @tf.custom_gradient
    def pooled(x):
        n = 1 if faulty else x.shape[1] * x.shape[2]

        def backward(g):
            return tf.broadcast_to(g[:, None, None] / n, x.shape)

        return tf.reduce_mean(x, axis=[1, 2]), backward

    net = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()])
    images = np.moveaxis(IMAGES, 1, -1)
    return net, {"loss": lambda net: tf.reduce_mean(tf.sin(pooled(net(images, training=True))))}


#: By framework: the program, the code that names its fault, and the tensors that are wrong (None: all of them).
def pytensor_detached_layer(faulty):
    """The second layer of three sees a disconnected input."""
    import pytensor
    from pytensor import tensor as pt
    from pytensor.gradient import disconnected_grad

    rng = np.random.default_rng(0)
    layers = [pytensor.shared(rng.standard_normal((4, 4)).astype("float32"), name=f"w{i}") for i in range(3)]
    h = pt.constant(SEQUENCES.reshape(-1, 4)[:12])
    for i, w in enumerate(layers):
        h = pt.tanh((disconnected_grad(h) if faulty and i == 1 else h) @ w)  # FAULT
    return (h**2).mean(), {"at": layers}


def pytensor_scan_cut(faulty):
    """An Elman layer by scan, whose backward pass covers five steps."""
    import pytensor
    from pytensor import tensor as pt

    rng = np.random.default_rng(0)
    shapes = {"x": (15, 3, 2), "w": (2, 4), "r": (4, 4)}
    at = {name: pytensor.shared(rng.standard_normal(shape), name=name) for name, shape in shapes.items()}
    states = pytensor.scan(
        lambda x, h, w, r: pt.tanh(x @ w + h @ r),
        sequences=[at["x"]],
        outputs_info=[np.zeros((3, 4))],
        non_sequences=[at["w"], at["r"]],
        truncate_gradient=5 if faulty else -1,  # FAULT
        return_updates=False,
    )
    return pt.sin(states).mean(), {"at": at}


FAULTS = {
    "numpy": [(numpy_logistic_without_n, "GA301", None), (numpy_perceptron_sign, "GA303", "hidden")],
    "torch": [
        (torch_lstm_gate_sign, "GA501", None),
        (torch_mean_squared_without_n, "GA501", None),
        (torch_transformer_detached, "GA101", "layers.0."),
        (torch_resnet_stale_statistics, "GA501", "blocks."),
        (torch_gpt_block_scaled, "GA101", None),
    ],
    "jax": [
        (jax_equinox_sign, "GA501", None),
        (jax_flax_scan_cut, "GA101", None),
        (jax_flax_mean_without_n, "GA501", None),
    ],
    "tensorflow": [
        (keras_lstm_detached, "GA101", "/first/"),
        (keras_convolution_mean_without_n, "GA501", None),
    ],
    "pytensor": [(pytensor_detached_layer, "GA101", None), (pytensor_scan_cut, "GA104", None)],
}
CASES = [case for framework, cases in FAULTS.items() if framework in TESTED for case in cases]


@pytest.fixture(autouse=True)
def seed():
    if "torch" in TESTED:
        import torch

        torch.manual_seed(0)


@pytest.mark.parametrize(("program", "code", "where"), CASES, ids=lambda c: getattr(c, "__name__", ""))
def test_the_fault_is_named(program, code, where):
    target, given = program(faulty=True)
    report = gradaudit.audit(target, **given)
    assert report.verdict is Verdict.DISAGREE
    found = next(f for f in report.findings if not f.code.startswith("GA8"))  # dropout is said first
    # no lines and no experiments in a gradient by hand: the pattern fits
    how = "consistent" if code in ("GA301", "GA303") else "proven"
    assert (found.code, found.confidence) == (code, how), str(report)
    wrong = {p.name for p in report.parameters if p.verdict is Verdict.DISAGREE}
    assert wrong
    assert set(found.parameters) == wrong
    if where is not None:
        assert all(where in name for name in wrong), wrong


@pytest.mark.parametrize("program", [case[0] for case in CASES], ids=lambda program: program.__name__)
def test_without_it_all_agree(program):
    target, given = program(faulty=False)
    report = gradaudit.audit(target, **given)
    assert report.verdict is Verdict.AGREE, str(report)
    assert all(math.isfinite(p.resolution) for p in report.parameters)
