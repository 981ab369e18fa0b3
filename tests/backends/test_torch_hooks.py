"""Hooks that change a PyTorch gradient are cuts: listed, and removed."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest

from gradaudit.backends import registry
from tests import conftest
from tests.backends.cutting import base, marked
from tests.backends.test_torch_cuts import assert_close, assert_mended, differences

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()


@pytest.fixture
def torch():
    import torch

    return torch


def model(function):
    return registry.get("torch").function_model(function, base())


def test_a_hook_on_a_tensor(torch):
    def loss(p):
        h = p["W"] @ p["b"]
        for _ in range(3):
            h = h.sin()
            h.register_hook(lambda g: (0.5 * g).clamp(-0.1, 0.1))  # CUT
            h.register_hook(lambda g: None)
            h.register_hook(hook=lambda g: g * 1)
        return h.square().sum()

    m = model(loss)
    (cut,) = m.cuts()
    assert (cut.kind, cut.path, [cut.line], cut.executions) == ("hook", __file__, marked(loss), 3)
    assert_mended(m, [cut])


def test_a_hook_on_a_parameter_and_one_that_changes_in_place(torch):
    def loss(p):
        h = p["W"] @ p["b"]
        p["W"].register_hook(lambda g: 2 * g)  # CUT

        def halve(g):
            g.mul_(0.5)

        h.register_hook(halve)  # CUT
        return h.square().sum()

    m = model(loss)
    cuts = m.cuts()
    assert sorted(cut.line for cut in cuts) == marked(loss)
    assert_mended(m, cuts)
    half = m.without([cut for cut in cuts if cut.line == marked(loss)[0]])
    with pytest.raises(AssertionError):
        assert_close(half.value_and_grad(base())[1], differences(m), 1e-6)


@pytest.mark.parametrize("kind", ["full", "pre", "none"])
def test_a_backward_hook_of_a_module(torch, kind):
    class Layer(torch.nn.Module):
        def forward(self, x):
            return x.sin()

    def scaled(module, incoming, outgoing=None):  # CUT
        return None if kind == "none" else tuple(0.5 * g for g in incoming)

    layer = Layer()
    hook = functools.partial(scaled)
    (layer.register_full_backward_pre_hook if kind == "pre" else layer.register_full_backward_hook)(hook)
    m = model(lambda p: (layer(p["W"] @ p["b"]) + layer(p["b"])).square().sum())
    before = torch.nn.Module.__dict__["_get_backward_hooks"]
    cuts = m.cuts()
    if kind == "none":
        assert cuts == ()
        return
    (cut,) = cuts
    assert (cut.kind, cut.path, [cut.line], cut.executions) == ("hook", __file__, marked(scaled), 2)
    assert_mended(m, [cut])
    assert torch.nn.Module.__dict__["_get_backward_hooks"] is before
    assert len(layer._backward_hooks) + len(layer._backward_pre_hooks) == 1


def test_with_other_cuts(torch):
    def loss(p):
        h = (p["W"] @ p["b"]).sin()
        h.register_hook(lambda g: 3 * g)  # CUT
        return (h * p["b"].detach()).square().sum()  # CUT

    m = model(loss)
    cuts = m.cuts()
    assert [cut.kind for cut in cuts] == ["detach", "hook"]
    assert_mended(m, cuts)
    held = m.holding(cuts)
    assert held.loss(held.parameters()) == m.loss(m.parameters())


def test_nothing_stays_and_other_threads_keep_their_hooks(torch):
    layer = torch.nn.Linear(3, 3, dtype=torch.float64)
    layer.register_full_backward_hook(lambda module, incoming, outgoing: tuple(7 * g for g in incoming))
    seen = []
    fails = False

    def gradient():
        x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        seen.append(torch.autograd.grad(layer(x * 1).sum(), x)[0].numpy())

    def loss(p):
        thread = threading.Thread(target=gradient)
        thread.start()
        thread.join()
        if fails:
            raise ValueError
        return layer(p["b"]).sum()

    before, registering = dict(torch.nn.Module.__dict__), torch.Tensor.__dict__["register_hook"]
    gradient()
    m = model(loss)
    cuts = m.cuts()
    assert len(cuts) == 1
    assert_mended(m, cuts)
    without = m.without(cuts)
    fails = True
    for attempt in (m.cuts, lambda: m.without(cuts), lambda: without.value_and_grad(base())):
        with pytest.raises(ValueError):
            attempt()
    assert all(np.array_equal(one, seen[0]) for one in seen)
    assert all(before[name] is value for name, value in torch.nn.Module.__dict__.items())
    assert torch.Tensor.__dict__["register_hook"] is registering
