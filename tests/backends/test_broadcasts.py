"""A loss over N x N pairs by accident is mentioned, with its line; deliberate ones, and all others, are not."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from tests import conftest

TESTED = conftest.tested()
N = 6
RNG = np.random.default_rng(0)
ROWS, TARGET = RNG.standard_normal((N, 3)), RNG.standard_normal(N)
WEIGHTS = {"w": np.array([[0.5], [-0.2], [0.1]]), "scale": np.array([1.1]), "wide": RNG.standard_normal((3, N))}


class Torch:
    """One name for what the frameworks call differently; so that each program below stands once."""

    def __init__(self):
        import torch

        self.array = torch.tensor
        self.mean, self.sum, self.abs, self.sigmoid = torch.mean, torch.sum, torch.abs, torch.sigmoid
        self.transpose, self.exp = torch.t, torch.exp
        self.reshape, self.expand = torch.reshape, torch.unsqueeze
        self.kept = lambda x: torch.sum(x, 1, keepdim=True)
        self.squeezed = lambda x: torch.squeeze(x, -1)
        self.softmax = lambda x: torch.softmax(x, -1)


class Jax:
    def __init__(self):
        import jax
        from jax import numpy as jnp

        self.array = jnp.asarray
        self.mean, self.sum, self.abs, self.sigmoid = jnp.mean, jnp.sum, jnp.abs, jax.nn.sigmoid
        self.transpose, self.exp = jnp.transpose, jnp.exp
        self.reshape, self.expand = jnp.reshape, jnp.expand_dims
        self.kept = lambda x: jnp.sum(x, axis=1, keepdims=True)
        self.squeezed = lambda x: jnp.squeeze(x, -1)
        self.softmax = lambda x: jax.nn.softmax(x, axis=-1)


class Tensorflow:
    def __init__(self):
        import tensorflow as tf

        self.array = tf.constant
        self.mean, self.sum, self.abs, self.sigmoid = tf.reduce_mean, tf.reduce_sum, tf.abs, tf.sigmoid
        self.transpose, self.exp = tf.transpose, tf.exp
        self.reshape, self.expand = tf.reshape, tf.expand_dims
        self.kept = lambda x: tf.reduce_sum(x, axis=1, keepdims=True)
        self.squeezed = lambda x: tf.squeeze(x, -1)
        self.softmax = lambda x: tf.nn.softmax(x, axis=-1)


FRAMEWORKS = {"torch": Torch, "jax": Jax, "tensorflow": Tensorflow}
HERE = [name for name in FRAMEWORKS if name in TESTED]
__test__ = bool(HERE)

# Each takes a framework f, the outputs of a layer (N, 1), the targets as (N,), as (N, 1) and as (1, N), and parameters.

ACCIDENTS = {
    "column minus vector": lambda f, out, y, col, row, p: f.mean((out - y) ** 2),
    "vector minus column": lambda f, out, y, col, row, p: f.mean((y - f.sigmoid(out)) ** 2),
    "squeezed outputs": lambda f, out, y, col, row, p: f.mean(f.abs(f.squeezed(out) - col)),
    "targets in a row": lambda f, out, y, col, row, p: f.sum((out - row) ** 2) / N,
    "weights of rows": lambda f, out, y, col, row, p: f.sum(y * (out - col) ** 2),
    "weights of rows, a column made": lambda f, out, y, col, row, p: f.sum(y * (out - f.reshape(y, (N, 1))) ** 2),
    "axis by axis": lambda f, out, y, col, row, p: f.mean(f.sum((out - y) ** 2, 1)),
    "part of it": lambda f, out, y, col, row, p: p["scale"][0] * f.mean(out / (y + 9)) + f.mean(out),
    "one column of several": lambda f, out, y, col, row, p: f.mean((f.array(ROWS) @ p["wide"])[:, :1] * y),
}
DELIBERATE = {
    "column minus column": lambda f, out, y, col, row, p: f.mean((out - col) ** 2),
    "vector minus vector": lambda f, out, y, col, row, p: f.mean((f.squeezed(out) - y) ** 2),
    "an index None": lambda f, out, y, col, row, p: f.mean((out - y[None, :]) ** 2),
    "an axis for both": lambda f, out, y, col, row, p: f.mean((f.squeezed(out)[:, None] - y) ** 2),
    "expanded": lambda f, out, y, col, row, p: f.mean((out - f.expand(y, 0)) ** 2),
    "pairwise, transposed": lambda f, out, y, col, row, p: f.mean(f.exp(-((out - f.transpose(out)) ** 2))),
    "pairwise, of itself": lambda f, out, y, col, row, p: f.mean((out - f.squeezed(out)) ** 2),
    "a kept axis": lambda f, out, y, col, row, p: f.mean((f.kept(out) - y) ** 2),
    "kept norms": lambda f, out, y, col, row, p: f.mean(f.kept(f.array(ROWS) @ p["wide"]) - y),
    "reshaped": lambda f, out, y, col, row, p: f.mean((f.reshape(f.squeezed(out), (N, 1)) - y) ** 2),
    "a bias for each column": lambda f, out, y, col, row, p: f.mean((f.array(ROWS) @ p["wide"] + y) ** 2),
    "one scale": lambda f, out, y, col, row, p: f.mean((out * p["scale"] - col) ** 2),
    "two parameters": lambda f, out, y, col, row, p: f.mean(p["wide"][0] * p["wide"][:, :1] * f.sum(out)),
    "attention": lambda f, out, y, col, row, p: f.mean(f.softmax(out * y) @ col),
    "pairs that meet others": lambda f, out, y, col, row, p: f.mean(f.sum(f.exp(-((out - y) ** 2)), 1) - y),
    "data alone": lambda f, out, y, col, row, p: f.mean((col - y) ** 2) * f.mean(out),
}


def report_of(framework, program):
    f = FRAMEWORKS[framework]()
    x, *targets = map(f.array, (ROWS, TARGET, TARGET[:, None], TARGET[None, :]))
    parameters = {name: f.array(value) for name, value in WEIGHTS.items()}
    return gradaudit.audit(lambda p: program(f, x @ p["w"], *targets, p), parameters)


@pytest.mark.parametrize("name", ACCIDENTS)
@pytest.mark.parametrize("framework", HERE)
def test_an_accident_is_mentioned(framework, name):
    report = report_of(framework, ACCIDENTS[name])
    assert report.verdict is Verdict.AGREE, str(report)
    (remark,) = report.remarks
    assert f"is taken over ({N}, {N}) pairs" in remark
    assert f"test_broadcasts.py:{ACCIDENTS[name].__code__.co_firstlineno} in <lambda>" in remark
    assert " ".join(str(report).split()).endswith(remark)


@pytest.mark.parametrize("name", DELIBERATE)
@pytest.mark.parametrize("framework", HERE)
def test_a_deliberate_one_is_not(framework, name):
    report = report_of(framework, DELIBERATE[name])
    assert report.verdict is Verdict.AGREE, str(report)
    assert report.remarks == ()


@pytest.mark.parametrize("framework", HERE)
def test_the_shapes_are_those_that_are_written(framework):
    (remark,) = report_of(framework, ACCIDENTS["column minus vector"]).remarks
    assert f"sub of ({N}, 1) and ({N},)" in remark
    (remark,) = report_of(framework, ACCIDENTS["targets in a row"]).remarks
    assert f"sub of ({N}, 1) and (1, {N})" in remark


@pytest.mark.parametrize("framework", HERE)
def test_one_row_is_no_pair(framework):
    f = FRAMEWORKS[framework]()
    x, y = f.array(ROWS[:1]), f.array(TARGET[:1])
    report = gradaudit.audit(lambda p: f.mean((x @ p["w"] - y) ** 2), {"w": f.array(WEIGHTS["w"])})
    assert report.remarks == ()


class TestTorch:
    __test__ = "torch" in TESTED

    @pytest.mark.parametrize("given", [False, True])
    @pytest.mark.parametrize("accident", [False, True])
    def test_in_a_step(self, accident, given):
        import torch

        torch.manual_seed(0)
        net, x, y = torch.nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5)
        target = y if accident else y[:, None]
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)

        def loss(net):
            return (net(x) - target).pow(2).mean()

        def step(net):
            optimiser.zero_grad()
            value = loss(net)
            value.backward()
            optimiser.step()
            return value

        report = gradaudit.audit_step(net, step, loss=loss if given else None)
        assert report.verdict is Verdict.AGREE, str(report)
        assert len(report.remarks) == accident

    def test_a_loss_that_fails_when_watched_has_no_remark(self):
        import torch
        from torch.utils._python_dispatch import _get_current_dispatch_mode

        def loss(p):
            if _get_current_dispatch_mode() is not None:
                raise ValueError
            return (p["w"] ** 2).sum()

        report = gradaudit.audit(loss, {"w": torch.ones(3)})
        assert report.verdict is Verdict.AGREE
        assert report.remarks == ()


class TestTensorflow:
    __test__ = "tensorflow" in TESTED

    @pytest.mark.parametrize("loop", [False, True])
    def test_a_loop_is_not_run_in_python(self, loop):
        import tensorflow as tf

        runs = []

        @tf.function
        def loss(p):
            out = tf.constant(ROWS) @ p["w"]
            for _ in tf.range(3) if loop else range(3):
                runs.append(1)
                out = 0.5 * out
            return tf.reduce_mean((out - TARGET) ** 2)

        report = gradaudit.audit(loss, {"w": tf.constant(WEIGHTS["w"])})
        assert report.verdict is Verdict.AGREE, str(report)
        assert len(report.remarks) == (not loop)
        assert len(runs) == (1 if loop else 3 + 3)  # traced; and once in Python
