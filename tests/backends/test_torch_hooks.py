"""Hooks that change a PyTorch gradient are cuts: listed, and removed."""

from __future__ import annotations

import functools
import sys
import threading

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
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


def clamped(gradient):  # CUT
    return gradient.clamp(-1e-3, 1e-3)


def halved(gradient):  # CUT
    gradient.mul_(0.5)


def halved_after(parameter):  # CUT
    parameter.grad.mul_(0.5)


def decayed_after(parameter):  # CUT
    parameter.grad = parameter.grad + 0.1 * parameter


def dropped_after(parameter):  # CUT
    parameter.grad = None


def network(torch, dtype="float32"):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x, y = torch.randn(24, 6), torch.randn(24, 1)
    net = net.to(getattr(torch, dtype))

    def loss(net):
        return (net(x.to(net[0].weight.dtype)) - y).square().mean()

    return net, loss


def hook(parameter, function):
    after = function.__name__.endswith("after")
    return (parameter.register_post_accumulate_grad_hook if after else parameter.register_hook)(function)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [clamped, halved, halved_after, decayed_after, dropped_after])
def test_the_hooks_of_a_parameter_are_seen(torch, dtype, function):
    net, loss = network(torch, dtype)
    for p in net[0].parameters():
        hook(p, function)
    report = gradaudit.audit(net, loss=loss)
    assert report.verdict is Verdict.DISAGREE
    assert {p.name for p in report.parameters if p.verdict is Verdict.DISAGREE} == {"0.weight", "0.bias"}
    finding = next(f for f in report.findings if f.code == "GA101")
    (line,) = marked(function)
    assert (finding.confidence, finding.title) == ("proven", f"cut at test_torch_hooks.py:{line}")
    assert "by hook at" in finding.sentence
    assert "without the hook" in finding.remedy


@pytest.mark.parametrize("function", [clamped, halved, halved_after, decayed_after, dropped_after])
def test_the_gradient_is_what_backward_leaves(torch, function):
    net, loss = network(torch)
    hook(net[2].weight, function)
    m = registry.model_of(net, None, loss=loss, gradient=None)
    _, gradients = m.value_and_grad(m.parameters())
    loss(net).backward()
    for name, p in net.named_parameters():
        if p.grad is None:
            assert gradients[name] is None
        else:
            np.testing.assert_allclose(gradients[name], p.grad.numpy(), rtol=1e-6)


def test_a_tensor_with_a_hook_as_the_point_of_a_function(torch):
    w = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    w.register_hook(clamped)
    report = gradaudit.audit(lambda p: p["w"].sin().sum(), {"w": w})
    assert (report.verdict, report.findings[0].code) == (Verdict.DISAGREE, "GA101")


def test_hooks_without_effect_run_once_a_gradient_and_stay(torch):
    net, loss = network(torch)
    sizes, calls = [], []
    for p in net.parameters():
        p.register_hook(lambda g: sizes.append(float(g.norm())))
        p.register_hook(lambda g: g.clamp(-1e3, 1e3))
        p.register_post_accumulate_grad_hook(lambda p: calls.append(p) or p.grad.mul_(1.0))
    before = [(p._backward_hooks.copy(), p._post_accumulate_grad_hooks.copy()) for p in net.parameters()]
    m = registry.model_of(net, None, loss=loss, gradient=None)
    m.loss(m.parameters())
    assert sizes == calls == []
    m.value_and_grad(m.parameters())
    assert len(sizes) == len(calls) == 4
    assert all(any(one is p for p in net.parameters()) for one in calls)
    report = gradaudit.audit(net, loss=loss)
    assert (report.verdict, report.findings) == (Verdict.AGREE, ())
    assert [(p._backward_hooks, p._post_accumulate_grad_hooks) for p in net.parameters()] == before


def test_an_optimiser_inside_the_backward_pass_updates_nothing(torch):
    net, loss = network(torch)
    loss(net).backward()
    optimisers = {p: torch.optim.Adam([p]) for p in net.parameters()}

    def stepping(parameter):
        optimisers[parameter].step()
        optimisers[parameter].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(stepping)
    values = [(p, p.data_ptr(), p.detach().clone(), p.grad, p.grad.clone()) for p in net.parameters()]
    assert gradaudit.audit(net, loss=loss).verdict is Verdict.AGREE
    for p, place, value, gradient, numbers in values:
        assert p.data_ptr() == place
        assert p.grad is gradient
        assert torch.equal(p, value)
        assert torch.equal(gradient, numbers)
        assert not optimisers[p].state


def test_a_hook_of_a_parameter_that_raises_changes_nothing(torch):
    net, loss = network(torch)
    loss(net).backward()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)

    def failing(parameter):
        parameter.data.zero_()
        optimiser.step(closure=lambda: 1 / 0)

    net[0].weight.register_post_accumulate_grad_hook(failing)
    values = [(p, p.detach().clone(), p.grad, p.grad.clone()) for p in net.parameters()]
    hooks = sys.modules["torch.optim.optimizer"]._global_optimizer_pre_hooks
    assert not hooks
    with pytest.raises(ZeroDivisionError):
        gradaudit.audit(net, loss=loss)
    for p, value, gradient, numbers in values:
        assert p.grad is gradient
        assert torch.equal(p, value)
        assert torch.equal(gradient, numbers)
    assert not hooks
