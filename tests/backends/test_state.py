"""What people hand over is as it was afterwards: also after a diagnosis, an exception, and Ctrl-C, on every adapter.

Each adapter has a `Subject`: the user's objects, an audit of them, and all that can be seen of them from outside, by
identity where there is one, and by value. What is compared of the process is in `tests.backends.test_untouched`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from tests import conftest
from tests.backends.test_untouched import same, watched

TESTED = conftest.tested()
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((8, 4)).astype("float32")
TARGET = RNG.standard_normal((8, 1)).astype("float32")


@dataclass(frozen=True)
class Subject:
    """A user's objects and their audit.

    Attributes:
        audit: with a function that is called whenever the user's own code runs, and may raise.
        seen: what can be seen of the objects.
        wrong: the gradient is wrong, so that the audit diagnoses.
    """

    framework: str
    audit: Callable[[Callable[[], None]], Any]
    seen: Callable[[], Any]
    wrong: bool = True


# ---------------------------------------------------------------- NumPy


def numpy_pair():
    x = np.random.default_rng(0).standard_normal(5)

    def audit(called):
        def loss(v):
            called()
            return (v**3).sum()

        return gradaudit.audit(loss, x, gradient=lambda v: 4 * v**2)

    return Subject("numpy", audit, lambda: (x.tobytes(), x.flags.writeable))


def numpy_named():
    at = {"a": np.random.default_rng(0).standard_normal(5), "b": [1.0, 2.0]}

    def audit(called):
        def loss(p):
            called()
            return (p["a"] ** 2).sum() + p["b"].sum()

        return gradaudit.audit(loss, at, gradient=lambda p: {"a": 3 * p["a"], "b": np.ones(2)})

    return Subject("numpy", audit, lambda: ([*at], at["a"].tobytes(), at["a"].flags.writeable, at["b"]))


# ---------------------------------------------------------------- PyTorch


def torch_module(*, compiled=False, trained=False):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6)
            self.drop, self.last = torch.nn.Dropout(0.3), torch.nn.Linear(6, 1)
            self.tied = self.last
            self.first.bias.requires_grad_(False)
            self.cache = []

        def forward(self, x):
            h = self.drop(torch.tanh(self.norm(self.first(x))))
            return self.last(h * torch.sigmoid(h).detach())

    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    if trained:  # gradients, statistics and moments of a step before
        torch.nn.functional.mse_loss(net(torch.from_numpy(ROWS)), torch.from_numpy(TARGET)).backward()
        optimizer.step()
        net.drop.eval()
    run = torch.compile(net, backend="eager") if compiled else net

    def audit(called):
        def loss(net):
            called()
            return torch.nn.functional.mse_loss(net(torch.from_numpy(ROWS)), torch.from_numpy(TARGET))

        return gradaudit.audit(run, loss=loss)

    return Subject("torch", audit, lambda: _module(net, optimizer))


def _module(net, optimizer, *, counted=True):
    """All that can be seen; ``counted``: also how often each tensor was written to, which a step that updates does."""
    hooks = [name for name in vars(net) if name.endswith("_hooks")]
    return {
        "parameters": [(n, id(p), _tensor(p, counted), p.requires_grad) for n, p in net.named_parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), _tensor(p.grad, counted)) for p in net.parameters()],
        "buffers": [(n, id(b), _tensor(b, counted)) for n, b in net.named_buffers()],
        "modes": [(id(m), m.training) for m in net.modules()],
        "hooks": [[len(getattr(m, name)) for name in hooks] for m in net.modules()],
        "attributes": [[*vars(m)] for m in net.modules()],
        "cache": list(net.cache),
        "optimizer": str(optimizer.state_dict()),
    }


def _tensor(x, counted=True):
    return x.detach().numpy().tobytes(), x.dtype, x._version if counted else None, x.grad_fn


def torch_function():
    import torch

    at = {"w": torch.randn(4, 3), "rest": [torch.randn(3, requires_grad=True), 7]}
    at["rest"][0].grad = torch.ones(3)

    def audit(called):
        def loss(t):
            called()
            h = torch.tanh(torch.from_numpy(ROWS) @ t["w"])
            return (h.detach() * h * t["rest"][0]).sum()

        return gradaudit.audit(loss, at)

    def seen():
        w, v = at["w"], at["rest"][0]
        return (
            [*at],
            id(w),
            _tensor(w),
            w.requires_grad,
            id(v),
            _tensor(v),
            v.requires_grad,
            id(v.grad),
            _tensor(v.grad),
        )

    return Subject("torch", audit, seen)


def torch_step():
    """A whole iteration: scaled, clipped, stepped; ``zero_grad`` forgotten."""
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 1))
    net.cache = []
    optimizer = torch.optim.Adam(net.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    x, y = torch.from_numpy(ROWS), torch.from_numpy(TARGET)

    def audit(called):
        def step(net):
            called()
            scaler.scale(torch.nn.functional.mse_loss(net(x), y)).backward()
            called()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            called()

        return gradaudit.audit_step(net, step, loss=lambda net: torch.nn.functional.mse_loss(net(x), y))

    return Subject("torch", audit, lambda: (_module(net, optimizer, counted=False), str(scaler.state_dict())))


def torch_operator():
    import torch

    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(3)
    x.grad = torch.ones(4, 3)

    def audit(called):
        def operator(x, w):
            called()
            return (x.clone().mul_(2) * w).sin() * x.detach()

        return gradaudit.audit_operator(operator, x, w)

    return Subject("torch", audit, lambda: [(id(t), _tensor(t), t.requires_grad, id(t.grad)) for t in (x, w)])


# ---------------------------------------------------------------- JAX


def jax_pytree():
    import jax
    from jax import numpy as jnp

    at = {"w": jnp.ones((4, 3)) / 3, "rest": [jnp.arange(3.0), 7]}

    def audit(called):
        def loss(p):
            called()
            h = jnp.tanh(ROWS @ p["w"])
            return (jax.lax.stop_gradient(h) * h * p["rest"][0]).sum()

        return gradaudit.audit(loss, at)

    return Subject("jax", audit, lambda: [(id(leaf), np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(at)])


def jax_step():
    import jax
    from jax import numpy as jnp

    weights = {"w": jnp.ones((4, 1)), "b": jnp.zeros(1)}

    def loss(p):
        return jnp.mean((ROWS @ p["w"] + p["b"] - TARGET) ** 2)

    def audit(called):
        def step(p):
            called()
            return jax.tree.map(lambda g: 2 * g, jax.grad(loss)(p))

        return gradaudit.audit_step(weights, step, loss=loss)

    return Subject("jax", audit, lambda: [(id(x), np.asarray(x).tobytes()) for x in weights.values()])


def jax_operator():
    import jax
    from jax import numpy as jnp

    x = jnp.arange(6.0)

    def audit(called):
        def operator(x):
            called()
            return jnp.sin(x) * jax.lax.stop_gradient(x)

        return gradaudit.audit_operator(operator, x)

    return Subject("jax", audit, lambda: (id(x), np.asarray(x).tobytes()))


def jax_equinox():
    import equinox as eqx
    import jax
    from jax import numpy as jnp

    net = eqx.nn.MLP(4, 1, 5, 1, key=jax.random.key(0))

    def audit(called):
        def loss(net):
            called()
            h = jax.vmap(net)(ROWS)
            return jnp.mean((h * jax.lax.stop_gradient(jnp.cos(h)) - TARGET) ** 2)

        return gradaudit.audit(net, loss=loss)

    return Subject("jax", audit, lambda: [(id(x), str(x)) for x in jax.tree.leaves(net)])


def jax_nnx():
    import jax
    from flax import nnx
    from jax import numpy as jnp

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inner, self.norm = nnx.Linear(4, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
            self.drop, self.outer = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(5, 1, rngs=rngs)

        def __call__(self, x):
            h = jnp.tanh(self.drop(self.norm(self.inner(x))))
            return self.outer(h * jax.lax.stop_gradient(jnp.cos(h)))

    net = Net(nnx.Rngs(0))

    def audit(called):
        def loss(net):
            called()
            return jnp.mean((net(ROWS) - TARGET) ** 2)

        return gradaudit.audit(net, loss=loss)

    def seen():
        state = nnx.state(net)
        return (
            [str(x) for x in jax.tree.leaves(state)],
            [*vars(net)],
            net.norm.use_running_average,
            net.drop.deterministic,
        )

    return Subject("jax", audit, seen)


# ---------------------------------------------------------------- TensorFlow


def keras_model():
    import keras

    layers = keras.layers
    net = keras.Sequential([layers.Input((4,)), layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.3)])
    net.add(layers.Dense(1))
    net.layers[0].bias.trainable = False
    net.compile(optimizer="adam", loss="mse")
    net.train_on_batch(ROWS, TARGET)

    def audit(called):
        def loss(net):
            called()
            h = net(ROWS, training=True)
            return keras.ops.mean((h * keras.ops.stop_gradient(keras.ops.cos(h)) - TARGET) ** 2)

        return gradaudit.audit(net, loss=loss)

    def seen():
        everything = [*net.variables, *net.optimizer.variables]
        return {
            "variables": [(v.path, id(v), id(v.value), v.numpy().tobytes(), v.trainable) for v in everything],
            "layers": [(id(x), x.trainable, x.compute_dtype, x.variable_dtype) for x in net._flatten_layers()],
            "dtype": (keras.config.floatx(), keras.config.dtype_policy().name),
            "attributes": [*vars(net)],
        }

    return Subject("tensorflow", audit, seen)


def tensorflow_function():
    import tensorflow as tf

    at = [tf.Variable([1.0, 2.0, 3.0]), tf.constant(2.0), tf.constant(7)]
    count = tf.Variable(0)

    def audit(called):
        def loss(v):
            called()
            count.assign_add(1)
            h = tf.sin(v[0])
            return tf.reduce_sum(h * tf.stop_gradient(tf.cos(h)) * v[1])

        return gradaudit.audit(loss, at)

    return Subject("tensorflow", audit, lambda: [(id(x), x.numpy().tobytes()) for x in at])


def tensorflow_operator():
    import tensorflow as tf

    x = tf.Variable([1.0, 2.0, 3.0])

    def audit(called):
        def operator(x):
            called()
            return tf.sin(x) * tf.stop_gradient(x)

        return gradaudit.audit_operator(operator, x)

    return Subject("tensorflow", audit, lambda: (id(x), x.numpy().tobytes()))


def numpy_step():
    w = np.random.default_rng(0).standard_normal((4, 1))

    def audit(called):
        def step(w):
            called()
            return 3 * ROWS.T @ (ROWS @ w - TARGET) / 8

        return gradaudit.audit_step(w, step, loss=lambda w: np.mean((ROWS @ w - TARGET) ** 2))

    return Subject("numpy", audit, lambda: (w.tobytes(), w.flags.writeable))


# ---------------------------------------------------------------- PyTensor


def pytensor_function():
    import pytensor
    from pytensor import tensor as pt
    from pytensor.gradient import disconnected_grad

    at = {"w": pytensor.shared(np.random.default_rng(0).standard_normal((4, 3)), name="w"), "n": 7}

    def audit(called):
        def loss(p):
            called()
            h = pt.tanh(ROWS.astype("float64") @ p["w"])
            return (disconnected_grad(h) * h).sum()

        return gradaudit.audit(loss, at)

    return Subject("pytensor", audit, lambda: ([*at], id(at["w"]), at["w"].get_value().tobytes(), at["w"].name))


def pytensor_symbolic():
    import pytensor
    from pytensor import tensor as pt
    from pytensor.gradient import disconnected_grad

    w = pytensor.shared(np.random.default_rng(0).standard_normal((4, 3)), name="w")
    called_in_the_graph = []

    class Called(pytensor.graph.op.Op):
        """The identity, which runs the user's code."""

        def make_node(self, x):
            return pytensor.graph.basic.Apply(self, [x], [x.type()])

        def perform(self, node, inputs, outputs):
            for called in called_in_the_graph:
                called()
            outputs[0][0] = inputs[0].copy()

        def pullback(self, inputs, outputs, cotangents):
            return cotangents

    h = pt.tanh(ROWS.astype("float64") @ Called()(w))
    loss = (disconnected_grad(h) * h).sum()

    def audit(called):
        called_in_the_graph[:] = [called]
        return gradaudit.audit(loss, [w])

    return Subject("pytensor", audit, lambda: (id(w), w.get_value().tobytes(), w.name, id(loss.owner), str(loss)))


SUBJECTS = {
    "numpy": {"a pair": numpy_pair, "named arrays": numpy_named, "a step": numpy_step},
    "torch": {
        "a module": torch_module,
        "a module in training": lambda: torch_module(trained=True),
        "a compiled module": lambda: torch_module(compiled=True),
        "a function": torch_function,
        "a step": torch_step,
        "an operator": torch_operator,
    },
    "jax": {
        "a pytree": jax_pytree,
        "equinox": jax_equinox,
        "flax nnx": jax_nnx,
        "a step": jax_step,
        "an operator": jax_operator,
    },
    "tensorflow": {"a keras model": keras_model, "a function": tensorflow_function, "an operator": tensorflow_operator},
    "pytensor": {"a function": pytensor_function, "a symbolic loss": pytensor_symbolic},
}
CASES = [(framework, name) for framework, found in SUBJECTS.items() if framework in TESTED for name in found]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def subject(request):
    framework, name = request.param
    return SUBJECTS[framework][name]()


def test_all_is_as_before(subject):
    subject.audit(lambda: None)  # what a framework loads at its first use is loaded
    before, outside = subject.seen(), watched(subject.framework)
    report = subject.audit(lambda: None)
    assert report.verdict is Verdict.DISAGREE or not subject.wrong, str(report)
    assert subject.seen() == before
    same(outside, watched(subject.framework))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_all_is_as_before_when_the_users_code_raises(subject, error):
    """At the first calls, in the middle, and at the last, where a diagnosis makes its experiments."""
    calls = {"n": 0, "fails": 0}

    def called():
        calls["n"] += 1
        if calls["n"] == calls["fails"]:
            raise error

    def run():
        calls["n"] = 0
        with suppress(error):
            subject.audit(called)
        return calls["n"]

    total = run()
    assert total >= 2
    before, outside = subject.seen(), watched(subject.framework)
    for fails in (1, total // 2, total):
        calls["fails"] = fails
        run()
        assert subject.seen() == before, fails
        same(outside, watched(subject.framework))
