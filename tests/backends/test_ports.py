"""Ports of one model between the libraries: with the right mapping they are the same function, a mistake is named.

Runs where all backends are tested (tox: ``cross``).
"""

from __future__ import annotations

import equinox as eqx
import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from flax import linen, nnx
from jax import numpy as jnp

import gradaudit
from gradaudit import Target, Verdict, conventions

RNG = np.random.default_rng(0)
N, T, D, H = 5, 4, 3, 6
X = RNG.standard_normal((N, T, D)).astype("float32")
IMAGES = RNG.standard_normal((2, 7, 6, 3)).astype("float32")
CLASSES = RNG.integers(3, size=N).astype("int32")
KEY = jax.random.key(0)


def moved(array):
    """Something else than the values that a library starts with, zeros above all."""
    return np.asarray(array) + RNG.uniform(-0.5, 0.5, array.shape).astype("float32")


def audited(source, target, mapping):
    return gradaudit.audit_all({"first": source, "port": target}, mapping={"port": mapping})


def same(source, target, mapping):
    report = audited(source, target, mapping)
    assert report.verdict is Verdict.AGREE, str(report)
    assert report.ports[1].verdict is Verdict.AGREE
    return report


class TorchCell:
    place = "*_l0"

    def __new__(cls, kind, bias=True):
        layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[kind](D, H, batch_first=True)
        for p in layer.parameters():
            p.data = torch.from_numpy(moved(p.detach().numpy()))
        return Target(layer, loss=lambda layer: layer(torch.from_numpy(X))[0].sin().sum())


class KerasCell:
    place = "{kind}"

    def __new__(cls, kind):
        layers = keras.layers
        make = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.SimpleRNN}[kind]
        layer = make(H, return_sequences=True, name=kind)
        layer.build(X.shape)
        for variable in layer.trainable_variables:
            variable.assign(moved(variable.numpy()))
        return Target(layer, loss=lambda layer: tf.reduce_sum(tf.sin(layer(X))))


class FlaxCell:
    place = "params.*"

    def __new__(cls, kind):
        cell = {"lstm": linen.OptimizedLSTMCell, "gru": linen.GRUCell, "rnn": linen.SimpleCell}[kind](H)
        rnn = linen.RNN(cell)
        variables = cell.init(KEY, cell.initialize_carry(KEY, (N, D)), X[:, 0])
        under = lambda v: {"params": {"cell": v["params"]}}  # noqa: E731
        return Target(
            lambda v: jnp.sum(jnp.sin(rnn.apply(under(v), X))), jax.tree.map(lambda a: jnp.asarray(moved(a)), variables)
        )


class NnxCell:
    place = "cell"

    def __new__(cls, kind):
        make = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}[kind]
        rnn = nnx.RNN(make(D, H, rngs=nnx.Rngs(0)))
        return Target(rnn, loss=lambda rnn: jnp.sum(jnp.sin(rnn(X))))


class EquinoxCell:
    place = "*"

    def __new__(cls, kind):
        cell = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[kind](D, H, key=KEY)

        def loss(cell):
            def one(x):
                zero = jnp.zeros(H, cell.weight_ih.dtype)
                state = (zero, zero) if kind == "lstm" else zero
                total = 0.0
                for step in x:
                    state = cell(step, state)
                    total += jnp.sum(jnp.sin(state[0] if kind == "lstm" else state))
                return total

            return jnp.sum(jax.vmap(one)(X))

        return Target(cell, loss=loss)


CELLS = {"torch": TorchCell, "keras": KerasCell, "flax": FlaxCell, "nnx": NnxCell, "equinox": EquinoxCell}
PAIRS = [("torch", other) for other in CELLS if other != "torch"] + [
    (other, "torch") for other in CELLS if other != "torch"
]


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_recurrent_layers(kind, source, target):
    if kind == "rnn" and "equinox" in (source, target):
        with pytest.raises(gradaudit.GradauditError, match="converted from one place to another"):
            conventions.rnn(torch="*", equinox="*")
        return
    convert = {"lstm": conventions.lstm, "gru": conventions.gru, "rnn": conventions.rnn}[kind]
    places = {name: CELLS[name].place.format(kind=kind) for name in (source, target)}
    first = CELLS[source](kind)
    if kind == "gru" and target == "nnx":
        with pytest.raises(gradaudit.GradauditError, match=r"6 of 18 entries of 'bias_hh_l0'.* are in no parameter"):
            same(first, CELLS[target](kind), convert(**places))
        first.target.bias_hh_l0.data[2 * H :] = 0
    same(first, CELLS[target](kind), convert(**places))


def test_a_recurrent_layer_without_a_bias_and_the_second_of_two():
    torch.manual_seed(0)
    two = torch.nn.GRU(D, H, num_layers=2, bias=False, batch_first=True, bidirectional=True)
    first = Target(two, loss=lambda gru: gru(torch.from_numpy(X))[0].sin().sum())
    layers = keras.layers
    stack = keras.Sequential([layers.Input((T, D))])
    for i in range(2):
        gru = layers.GRU(H, use_bias=False, return_sequences=True, name=f"l{i}")
        stack.add(layers.Bidirectional(gru, name=f"both{i}"))
    mapping = {}
    for i in range(2):
        for way, suffix in (("forward", ""), ("backward", "_reverse")):
            place = f"{stack.name}/both{i}/{way}_l{i}"
            mapping |= conventions.gru(torch=f"*_l{i}{suffix}", keras=place, bias=False)
    same(first, Target(stack, loss=lambda stack: tf.reduce_sum(tf.sin(stack(X)))), mapping)


class TorchConv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, (3, 2)), torch.nn.BatchNorm2d(4)
        self.out = torch.nn.Linear(4, 2)
        for p in self.parameters():
            p.data = torch.from_numpy(moved(p.detach().numpy()))

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))


def torch_conv():
    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    return Target(TorchConv(), loss=lambda net: net(images).sin().sum())


def keras_conv(epsilon=1e-5):
    layers = keras.layers
    net = keras.Sequential([layers.Input(IMAGES.shape[1:]), layers.Conv2D(4, (3, 2), name="conv")], name="net")
    net.add(layers.BatchNormalization(epsilon=epsilon, name="norm"))
    for layer in (layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(2, name="out")):
        net.add(layer)
    return Target(net, loss=lambda net: tf.reduce_sum(tf.sin(net(IMAGES, training=True))))


def nnx_conv():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 2), padding="VALID", rngs=rngs)
            self.norm, self.out = nnx.BatchNorm(4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2)))

    return Target(Net(nnx.Rngs(0)), loss=lambda net: jnp.sum(jnp.sin(net(IMAGES))))


def equinox_conv():
    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: dict
        out: eqx.nn.Linear

    net = Net(
        eqx.nn.Conv2d(3, 4, (3, 2), key=KEY), {"weight": jnp.ones(4), "bias": jnp.ones(4)}, eqx.nn.Linear(4, 2, key=KEY)
    )

    def loss(net):
        x = jax.vmap(net.conv)(jnp.moveaxis(IMAGES, 3, 1).astype(net.conv.weight.dtype))  # lax promotes nothing
        mean, var = (f(x, axis=(0, 2, 3), keepdims=True) for f in (jnp.mean, jnp.var))
        scale, offset = (net.norm[n][None, :, None, None] for n in ("weight", "bias"))
        x = jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * scale + offset)
        return jnp.sum(jnp.sin(jax.vmap(net.out)(x.mean(axis=(2, 3)))))

    return Target(net, loss=loss)


CONVOLUTIONS = {"torch": torch_conv, "keras": keras_conv, "nnx": nnx_conv, "equinox": equinox_conv}


def convolution(source, target):
    mapping = {}
    for name, convert in (("conv", conventions.conv), ("norm", conventions.batch_norm), ("out", conventions.dense)):
        mapping |= convert(**{n: f"net/{name}" if n == "keras" else name for n in (source, target)})
    return mapping


@pytest.mark.parametrize(
    ("source", "target"), [("torch", "keras"), ("torch", "nnx"), ("torch", "equinox"), ("keras", "torch"),
                           ("nnx", "torch"), ("equinox", "keras")]
)  # fmt: skip
def test_convolution_normalisation_and_dense(source, target):
    same(CONVOLUTIONS[source](), CONVOLUTIONS[target](), convolution(source, target))


def test_another_epsilon_is_another_function():
    report = audited(torch_conv(), keras_conv(epsilon=1e-3), convolution("torch", "keras"))
    assert [p.verdict for p in report.parts] == [Verdict.AGREE] * 2
    assert (report.ports[1].verdict, report.ports[1].confidence) == (Verdict.DISAGREE, "unexplained")
    assert "is another function" in report.ports[1].sentence


def test_an_embedding_and_layer_norm():
    tokens = RNG.integers(7, size=(3, 4)).astype("int32")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.LayerNorm(4))
    first = Target(net, loss=lambda net: net(torch.from_numpy(tokens)).sin().sum())
    layers = keras.layers
    port = keras.Sequential([layers.Input((4,), dtype="int32"), layers.Embedding(7, 4, name="e")], name="net")
    port.add(layers.LayerNormalization(epsilon=1e-5, name="n"))
    names = {"e": ("0", conventions.embedding), "n": ("1", conventions.layer_norm)}
    mapping = {k: r for name, (at, convert) in names.items() for k, r in convert(torch=at, keras=f"net/{name}").items()}
    same(first, Target(port, loss=lambda net: tf.reduce_sum(tf.sin(net(tokens)))), mapping)


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = torch.nn.LSTM(D, H, batch_first=True), torch.nn.Linear(H, 3)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def jax_classifier(order):
    """The port that somebody writes by hand, the parameters as PyTorch stores them; its gates in some order."""

    def loss(p):
        def step(state, x):
            h, c = state
            z = jnp.split(p["w_ih"] @ x + p["w_hh"] @ h + p["b"], 4)
            g = dict(zip(order, z, strict=True))
            c = jax.nn.sigmoid(g["f"]) * c + jax.nn.sigmoid(g["i"]) * jnp.tanh(g["g"])
            return (jax.nn.sigmoid(g["o"]) * jnp.tanh(c), c), None

        def logits(x):
            zero = jnp.zeros(H, p["b"].dtype)
            (h, _), _ = jax.lax.scan(step, (zero, zero), x)
            return p["out"]["w"] @ h + p["out"]["b"]

        chosen = jax.nn.one_hot(CLASSES, 3)
        return -jnp.mean(jnp.sum(chosen * jax.nn.log_softmax(jax.vmap(logits)(X)), axis=1))

    shapes = {"w_ih": (4 * H, D), "w_hh": (4 * H, H), "b": (4 * H,), "out": {"w": (3, H), "b": (3,)}}
    return Target(loss, jax.tree.map(jnp.zeros, shapes, is_leaf=lambda s: isinstance(s, tuple)))


def classifiers(order="ifgo"):
    torch.manual_seed(0)
    net, y = Classifier(), torch.from_numpy(CLASSES).long()
    layers = keras.layers
    port = keras.Sequential(
        [layers.Input((T, D)), layers.LSTM(H, name="lstm"), layers.Dense(3, name="out")], name="net"
    )
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    models = {
        "torch": Target(net, loss=lambda net: torch.nn.functional.cross_entropy(net(torch.from_numpy(X)), y)),
        "keras": Target(port, loss=lambda port: entropy(CLASSES, port(X))),
        "jax": jax_classifier(order),
    }
    by_hand = {"w_ih": "lstm.weight_ih_l0", "w_hh": "lstm.weight_hh_l0", "out.w": "out.weight", "out.b": "out.bias"}
    mapping = {
        "keras": conventions.lstm(torch="lstm", keras="net/lstm") | conventions.dense(torch="out", keras="net/out"),
        "jax": by_hand | {"b": lambda p: p["lstm.bias_ih_l0"] + p["lstm.bias_hh_l0"]},
    }
    return models, mapping


def test_one_classifier_in_three_frameworks():
    models, mapping = classifiers()
    before = [v.numpy() for v in models["keras"].target.variables]
    report = gradaudit.audit_all(models, mapping=mapping)
    assert report.verdict is Verdict.AGREE, str(report)
    assert [p.source for p in report.parts] == ["a float64 twin"] * 3
    assert max(p.loss_difference for p in report.ports) < 1e-12
    assert max(p.gradient_difference for p in report.ports) < 1e-11
    assert all(np.array_equal(b, v.numpy()) for b, v in zip(before, models["keras"].target.variables, strict=True))
    assert all(p.grad is None for p in models["torch"].target.parameters())


def kept(models):
    """All that must be as before: parameters, generators, settings."""
    net, port = models["torch"].target, models["keras"].target
    return [
        [p.detach().numpy().copy() for p in net.parameters()],
        [v.numpy() for v in port.variables],
        [np.array(a) for a in jax.tree.leaves(models["jax"].at)],
        [torch.get_rng_state().numpy(), np.random.get_state()[1], tf.random.get_global_generator().state.numpy()],
        [np.array([jax.config.jax_enable_x64, torch.is_grad_enabled(), net.training])],
    ]


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_changes(interrupted):
    models, mapping = classifiers("ifog")
    before = kept(models)
    if interrupted:
        right, calls = models["keras"].loss, iter(range(9))

        def loss(port):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return right(port)

        models["keras"] = Target(models["keras"].target, loss=loss)
        with pytest.raises(KeyboardInterrupt):
            gradaudit.audit_all(models, mapping=mapping)
    else:
        gradaudit.audit_all(models, mapping=mapping)
    for was, now in zip(before, kept(models), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(was, now, strict=True))
    assert all(p.grad is None for p in models["torch"].target.parameters())
    assert {layer.compute_dtype for layer in models["keras"].target._flatten_layers()} == {"float32"}


def test_a_flattened_image_in_another_order():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4 * 5 * 4, 2)

        def forward(self, x):
            return self.out(self.conv(x).tanh().flatten(1))

    images = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)
    first = Target(Net(), loss=lambda net: net(images).sin().sum())
    layers = keras.layers
    port = keras.Sequential(
        [layers.Input(IMAGES.shape[1:]), layers.Conv2D(4, 3, activation="tanh", name="conv")], name="net"
    )
    port.add(layers.Flatten())
    port.add(layers.Dense(2, name="out"))
    target = Target(port, loss=lambda net: tf.reduce_sum(tf.sin(net(IMAGES))))
    mapping = conventions.conv(torch="conv", keras="net/conv") | conventions.dense(torch="out", keras="net/out")
    found = audited(first, target, mapping).ports[1]
    assert (found.verdict, found.confidence) == (Verdict.DISAGREE, "proven")
    assert found.evidence.startswith(
        "With axis 0 of net/out/kernel read as 20 x 4 instead of 4 x 20, losses and gradients"
    )
    right = lambda p: p["out.weight"].reshape(2, 4, 5, 4).transpose(2, 3, 1, 0).reshape(-1, 2)  # noqa: E731
    same(first, target, mapping | {"net/out/kernel": right})


def test_gates_that_a_port_reads_in_another_order():
    models, mapping = classifiers("ifog")
    mapping["keras"]["net/lstm/lstm_cell/recurrent_kernel"] = lambda p: np.roll(p["lstm.weight_hh_l0"], H, axis=0).T
    report = gradaudit.audit_all(models, mapping=mapping)
    assert report.verdict is Verdict.DISAGREE
    assert [p.verdict for p in report.parts] == [Verdict.AGREE] * 3
    assert [(p.verdict, p.confidence) for p in report.ports[1:]] == [(Verdict.DISAGREE, "proven")] * 2
    assert report.ports[1].evidence.startswith(
        "With the gates o, i, f, g of net/lstm/lstm_cell/recurrent_kernel read as i, f, g, o, losses and gradients"
    )
    assert report.ports[2].evidence.startswith(
        "With the gates i, f, g, o of b, w_hh and w_ih read as i, f, o, g, losses"
    )
    assert "jax is another function than torch: at the same parameters the losses are" in str(report)


def test_a_gradient_that_is_cut_in_a_port_is_not_a_wrong_port():
    models, mapping = classifiers()
    right = models["jax"].target
    cut = lambda p: right(p | {"b": jax.lax.stop_gradient(p["b"])})  # noqa: E731
    models["jax"] = Target(cut, models["jax"].at)
    report = gradaudit.audit_all(models, mapping=mapping)
    assert [p.verdict for p in report.parts] == [Verdict.AGREE, Verdict.AGREE, Verdict.DISAGREE]
    assert report.ports[2].sentence == "The losses agree; the gradients differ, and that of jax is wrong."
