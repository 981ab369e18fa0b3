"""The float64 twin of a PyTorch function that writes into float32 tensors of its own: what is written counts."""

from __future__ import annotations

import copy

import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from tests import conftest

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()


@pytest.fixture
def torch():
    import torch

    torch.manual_seed(0)
    return torch


def network(torch):
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def assigned(torch, net, other):
    for p, q in zip(other.parameters(), net.parameters(), strict=True):
        p.data = q.data


def copied(torch, net, other):
    with torch.no_grad():
        for p, q in zip(other.parameters(), net.parameters(), strict=True):
            p.copy_(q)


def copied_by_index(torch, net, other):
    for p, q in zip(other.parameters(), net.parameters(), strict=True):
        p.data[:] = q.detach()


def loaded(torch, net, other):
    other.load_state_dict(net.state_dict())


def as_a_vector(torch, net, other):
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(net.parameters()), other.parameters())


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("write", [assigned, copied, copied_by_index, loaded, as_a_vector])
def test_weights_that_are_written_into_another_network(torch, write, decay):
    """Their values are in the loss, and autograd does not know: with a decay, a part of the gradient is right."""
    net, x, y = network(torch), torch.randn(24, 6), torch.randn(24, 1)
    other = copy.deepcopy(net)

    def loss(net):
        dtype = net[0].weight.dtype
        write(torch, net, other)
        penalty = sum(p.square().sum() for p in net.parameters())
        return (other(x.to(dtype)) - y.to(dtype)).square().mean() + decay * penalty

    assert registry.model_of(net, None, loss=loss, gradient=None).twin() is None
    report = gradaudit.audit(net, loss=loss)
    assert {p.verdict for p in report.parameters} == {Verdict.DISAGREE}
    assert report.findings[0].code == "GA101"
    assert {p.dtype for p in other.parameters()} == {torch.float32}


@pytest.mark.parametrize("cut", [False, True])
def test_a_memory_beside_the_loss_costs_no_twin(torch, cut):
    net, x, y = network(torch), torch.randn(24, 6), torch.randn(24, 1)
    memory = torch.zeros(30, 8)

    def loss(net):
        h = net[0](x)
        memory[:24] = h.detach()
        return (net[2](torch.relu(h.detach() if cut else h)) - y).square().mean()

    report = gradaudit.audit(net, loss=loss)
    assert report.source == "a float64 twin"
    assert report.verdict is (Verdict.DISAGREE if cut else Verdict.AGREE)


@pytest.mark.parametrize("cut", [False, True])
def test_states_that_are_written_one_by_one(torch, cut):
    """Rounded where they are written, as in float32."""
    cell, x = torch.nn.RNNCell(6, 8), torch.randn(5, 24, 6)

    def loss(cell):
        states, h = torch.zeros(5, 24, 8), torch.zeros(24, 8)
        for t in range(5):
            states[t] = h = cell(x[t], h.detach() if cut else h)
        return (states * cell.bias_hh).square().mean()

    assert gradaudit.audit(cell, loss=loss).verdict is (Verdict.DISAGREE if cut else Verdict.AGREE)


def test_a_sum_that_is_added_up_in_place_keeps_its_twin(torch):
    net, x = network(torch), torch.randn(24, 6)

    def loss(net):
        total = torch.zeros(())
        for part in x.split(6):
            total += net(part).square().mean()
        return total

    report = gradaudit.audit(net, loss=loss)
    assert (report.verdict, report.source) == (Verdict.AGREE, "a float64 twin")
