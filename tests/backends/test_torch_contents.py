"""What a module holds beside what is trained starts anew at each evaluation, and is as before after an audit."""

from __future__ import annotations

from collections import deque

import pytest

import gradaudit
from gradaudit import Verdict
from tests import conftest

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()

if __test__:
    import torch
    from torch import nn
    from torch.nn.functional import mse_loss
    from torch.utils.checkpoint import checkpoint

    from gradaudit.backends.torch.adapt import adapted

    class Target(nn.Module):
        """Learns what a slower copy of itself says of other data, as BYOL does."""

        def __init__(self):
            super().__init__()
            self.net, self.slow = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(2))
            self.slow.requires_grad_(False)

        def forward(self, x):
            return mse_loss(self.net(x), self.slow(x + 0.1))

        def follow(self):
            with torch.no_grad():
                for p, q in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                    p.mul_(0.9).add_(q, alpha=0.1)

    class Codebook(nn.Module):
        """Its buffer moves with each forward, and the loss uses it."""

        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(6, 2), nn.Linear(2, 6)
            self.register_buffer("codes", torch.randn(5, 2))

        def forward(self, x):
            z = self.encode(x)
            nearest = torch.cdist(z, self.codes).argmin(1)
            code = self.codes[nearest]
            with torch.no_grad():
                for k in nearest.unique():
                    self.codes[k] = 0.9 * self.codes[k] + 0.1 * z[nearest == k].mean(0)
            return mse_loss(self.decode(z), x) + 0.25 * (z - code).square().mean()


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(24, 6)


class TestStep:
    @pytest.mark.parametrize("zeroed", [True, False])
    @pytest.mark.parametrize("kind", ["frozen", "buffer"])
    def test_state_that_moves_is_no_forgotten_zero_grad(self, x, kind, zeroed):
        net = Target() if kind == "frozen" else Codebook()
        optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)

        def step(net):
            if zeroed:
                optimiser.zero_grad()
            net(x).backward()
            optimiser.step()
            if kind == "frozen":
                net.follow()

        report = gradaudit.audit_step(net, step, loss=lambda net: net(x))
        assert report.verdict is (Verdict.AGREE if zeroed else Verdict.DISAGREE), str(report)
        assert [finding.code for finding in report.findings] == ([] if zeroed else ["GA805"])

    def test_nor_is_state_that_the_module_does_not_hold(self, x):
        whole = Target()
        optimiser = torch.optim.SGD(whole.net.parameters(), lr=0.1)

        def loss(net):
            return mse_loss(net(x), whole.slow(x + 0.1))

        def step(net):
            optimiser.zero_grad()
            loss(net).backward()
            optimiser.step()
            whole.follow()

        report = gradaudit.audit_step(whole.net, step, loss=loss)
        # nobody puts it back, so nothing else is promised
        assert "GA805" not in [finding.code for finding in report.findings], str(report)

    @pytest.mark.parametrize("error", [None, ValueError])
    def test_nothing_that_the_step_changes_stays_changed(self, x, error):
        net = Target()
        net.calls, net.last, net.log, net.running = 0, None, [torch.zeros(2)], torch.zeros(())
        held = {name: (p, p.clone(), p.requires_grad) for name, p in net.named_parameters()}
        first, running = net.log[0], net.running

        def step(net):
            net.zero_grad()
            loss = net(x)
            loss.backward()
            net.eval()
            net.net[0].requires_grad_(False)
            net.calls, net.last = net.calls + 1, loss.detach()
            net.log.append(net.last)
            net.log[0].add_(1)
            net.running.add_(net.last)
            net.follow()
            net.register_buffer("cached", torch.ones(2))
            if error is not None:
                raise error

        try:
            report = gradaudit.audit_step(net, step, loss=lambda net: net(x))
        except ValueError:
            assert error is not None
        else:
            assert report.verdict is Verdict.AGREE, str(report)
        assert net.training
        assert all(m.training for m in net.modules())
        assert (net.calls, net.last, len(net.log)) == (0, None, 1)
        assert net.log[0] is first
        assert net.running is running
        assert not first.any()
        assert not running
        assert not hasattr(net, "cached")
        for name, p in net.named_parameters():
            before, value, trained = held[name]
            assert p is before
            assert p.requires_grad == trained
            assert torch.equal(p, value)
            assert p.grad is None

    def test_a_graph_that_holds_on_to_an_attribute_can_still_be_followed(self, x):
        net = Target()
        net.factor = torch.ones(6)
        kept = (net.factor * x.clone().requires_grad_()).sum()
        gradaudit.audit_step(net, lambda net: net(x * net.factor).backward(), loss=lambda net: net(x * net.factor))
        kept.backward()


def codes(report):
    return [finding.code for finding in report.findings]


class TestLoss:
    @pytest.mark.parametrize("used", ["before", "after"])
    @pytest.mark.parametrize("kind", ["frozen", "buffer"])
    def test_a_frozen_parameter_is_put_back_like_a_buffer(self, x, kind, used):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(6, 3)
                if kind == "buffer":
                    self.register_buffer("slow", torch.randn(3, 6))
                else:
                    self.slow = nn.Parameter(torch.randn(3, 6), requires_grad=False)

            def forward(self, x):
                target = x @ self.slow.T
                with torch.no_grad():
                    self.slow.mul_(0.9).add_(self.net.weight, alpha=0.1)
                return mse_loss(self.net(x), x @ self.slow.T if used == "after" else target)

        net = Net()
        slow, before = net.slow, net.slow.clone()
        report = gradaudit.audit(net, loss=lambda net: net(x))
        assert net.slow is slow
        assert torch.equal(slow, before)
        # the weights move the target that is used, and no gradient comes from there
        assert codes(report) == (["GA101"] if used == "after" else []), str(report)
        assert report.verdict is (Verdict.DISAGREE if used == "after" else Verdict.AGREE)

    @pytest.mark.parametrize("error", [None, ValueError])
    def test_modes_and_attributes_are_as_before(self, x, error):
        net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 1))
        net.calls, net.log = 0, []
        log, attributes = net.log, set(vars(net))

        def loss(net):
            net.eval()
            net.requires_grad_(True)
            net.calls += 1
            net.log.append(net.calls)
            net.register_buffer("cached", torch.ones(()))
            net.other = 1
            value = net(x).square().mean() + 0 * net.calls
            if error is not None:
                raise error
            return value

        net[0].requires_grad_(False)
        if error is None:
            assert gradaudit.audit(net, loss=loss).verdict is Verdict.AGREE
        else:
            with pytest.raises(error):
                gradaudit.audit(net, loss=loss)
        assert all(m.training for m in net.modules())
        assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
        assert net.calls == 0
        assert net.log is log
        assert not log
        assert set(vars(net)) == attributes
        assert not list(net.buffers())

    def test_a_loss_that_counts_its_calls_is_the_same_at_each(self, x):
        net = nn.Linear(6, 1)
        net.calls = 0

        def loss(net):
            net.calls += 1
            return net(x).square().mean() / net.calls

        assert gradaudit.audit(net, loss=loss).verdict is Verdict.AGREE

    def test_a_state_carried_from_batch_to_batch(self):
        torch.manual_seed(0)
        x = torch.randn(4, 6, 2)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell, self.out, self.state = nn.GRU(2, 5, batch_first=True), nn.Linear(5, 1), None

            def forward(self, x):
                y, state = self.cell(x, self.state)
                self.state = state.detach()
                return self.out(y)

        def loss(net):
            return net(x).square().mean()

        net = Net()
        for _ in range(2):  # without a state yet, and with one
            state = net.state
            before = None if state is None else state.clone()
            report = gradaudit.audit(net, loss=loss)
            assert report.verdict is Verdict.AGREE, str(report)
            assert "twin" in str(report)
            assert net.state is state
            assert state is None or torch.equal(state, before)
            loss(net).backward()

    @pytest.mark.parametrize("cut", [True, False])
    def test_a_state_carried_inside_one_loss(self, cut):
        torch.manual_seed(0)
        x = torch.randn(4, 6, 2)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell, self.state = nn.LSTM(2, 5, batch_first=True), (torch.zeros(1, 4, 5), torch.zeros(1, 4, 5))

            def forward(self, x):
                y, (h, c) = self.cell(x, self.state)
                self.state = (h.detach(), c.detach()) if cut else (h, c)
                return y

        net = Net()
        state = net.state
        report = gradaudit.audit(net, loss=lambda net: sum(net(x[:, t : t + 3]).square().mean() for t in (0, 3)))
        assert net.state is state
        assert codes(report) == (["GA101"] if cut else []), str(report)
        if cut:
            assert "test_torch_contents.py:" in report.findings[0].title

    @pytest.mark.parametrize("written", ["in place", "anew"])
    def test_tensors_are_as_before_however_they_are_held(self, x, written):
        net = nn.Sequential(nn.Linear(6, 3), nn.Softmax(-1), nn.Linear(3, 1))
        for name in ("tensor", "list", "dict", "deque", "tuple", "unregistered"):
            load = torch.rand(3)
            held = {"list": [load], "dict": {0: load}, "deque": deque([load]), "tuple": ([load],)}
            setattr(net, name, [nn.Identity()] if name == "unregistered" else held.get(name, load))
        net[1].load, net.unregistered[0].load = torch.rand(3), torch.rand(3)
        places = [(vars(net), "tensor"), (net.list, 0), (net.dict, 0), (net.deque, 0), (net.tuple[0], 0)]
        places += [(vars(net[1]), "load"), (vars(net.unregistered[0]), "load")]

        def loss(net):
            load = net[:2](x).detach().mean(0)
            for container, key in places:
                if written == "in place":
                    container[key].mul_(0.9).add_(load, alpha=0.1)
                else:
                    container[key] = 0.9 * container[key] + 0.1 * load
            return net(x).square().mean() + sum(container[key].square().sum() for container, key in places)

        before = [(container[key], container[key].clone()) for container, key in places]
        report = gradaudit.audit(net, loss=loss)
        for (container, key), (load, value) in zip(places, before, strict=True):
            assert container[key] is load
            assert torch.equal(load, value)
        assert "twin" in str(report)
        assert codes(report) == ["GA101"], str(report)  # the loads that are penalised are detached
        loss(net).backward()

    def test_a_list_that_the_loss_knows_as_well(self, x):
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        net.penalties = penalties = []

        def loss(net):
            penalties.clear()
            net.penalties.append(net(x).square().mean())
            return sum(penalties)

        assert gradaudit.audit(net, loss=loss).verdict is Verdict.AGREE
        assert not penalties

    @pytest.mark.parametrize("halved", [True, False])
    def test_a_list_of_parameters(self, x, halved):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
                self.all = [self.a, self.b]

            def forward(self, x):
                first = self.all[0] / 2 + self.all[0].detach() / 2 if halved else self.all[0]
                return ((x * first).sin() @ self.all[1]).square().mean()

        net = Net()
        assert codes(gradaudit.audit(net, loss=lambda net: net(x))) == (["GA101"] if halved else [])
        assert all(p is q for p, q in zip(net.all, net.parameters(), strict=True))


class TestElsewhere:
    """What the module does not hold is not restored; but it stays of use."""

    @pytest.mark.parametrize("kept", [True, False])
    def test_a_log_of_tensors(self, x, kept):
        net, log, calls = nn.Linear(6, 1), [], []

        def loss(net):
            y = net(x)
            calls.append(1)
            log.append(y.detach().mean() if kept else y.shape)
            return y.square().mean()

        report = gradaudit.audit(net, loss=loss)
        assert report.verdict is Verdict.AGREE, str(report)
        assert not kept or torch.stack(log).isfinite().all()
        # batched where nothing is kept
        assert (len(calls) > report.evaluations) is kept

    @pytest.mark.parametrize(
        "loss",
        [
            lambda net, x: net[0](x)[0].square().mean(),
            lambda net, x: net[1](x).square().mean(),
            lambda net, x: checkpoint(net[1], x, use_reentrant=False).square().mean(),
            lambda net, x: torch.func.grad(lambda x: net[2](x).square().sum())(x).square().mean(),
            lambda net, x: net[2](x.to(x.dtype).contiguous()).tanh().mean(),
        ],
        ids=["recurrent", "transformer", "checkpoint", "differentiated", "no copy"],
    )
    def test_what_pytorch_keeps_for_itself_does_not_count(self, loss):
        torch.manual_seed(0)
        x = torch.randn(4, 5, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        net = nn.ModuleList([nn.LSTM(8, 3, 2, batch_first=True), layer, nn.Linear(8, 3)])
        model = adapted(net, None, loss=lambda net: loss(net, x))
        size, outlive = model._tried
        assert not outlive
        assert model.point_bytes > size
