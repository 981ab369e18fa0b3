"""Whole training steps of PyTorch: each fault is named, its right version agrees, and nothing of the user's changes."""

from __future__ import annotations

import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.errors import AmbiguousBackendError, ModelContractError
from tests import conftest

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()

if __test__:
    import torch
    from torch import nn
    from torch.nn.functional import mse_loss


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    return net, torch.randn(10, 4), 3 * torch.randn(10, 1)


def audited(case, step, **options):
    net, x, y = case
    return gradaudit.audit_step(net, step, loss=lambda net: mse_loss(net(x), y), **options)


def wrong(report, code, text=""):
    assert report.verdict is Verdict.DISAGREE, str(report)
    assert report.findings[0].code == code, str(report)
    assert text in str(report.findings[0]), str(report)


def accumulated(case, bounds, weight):
    _, x, y = case

    def step(net):
        for a, b in bounds:
            (mse_loss(net(x[a:b]), y[a:b]) * weight(b - a)).backward()

    return step


def test_unequal_micro_batches(case):
    bounds = ((0, 4), (4, 8), (8, 10))
    report = audited(case, accumulated(case, bounds, lambda n: 1 / 3))
    wrong(report, "GA302", "micro-batch 3 (2 of 10 rows) counts 1.67 times")
    assert audited(case, accumulated(case, bounds, lambda n: n / 10)).verdict is Verdict.AGREE


def test_the_cost_is_exact(case):
    report = audited(case, accumulated(case, ((0, 5), (5, 10)), lambda n: 0.5))
    # twin 1, baseline 3; whole model 21; along the gradient and four tensors: 8 each
    assert report.evaluations == 1 + 3 + 21 + 8 * (1 + 4)


def test_missing_division(case):
    report = audited(case, accumulated(case, ((0, 5), (5, 10)), lambda n: 1))
    wrong(report, "GA301", "micro-batches")
    assert audited(case, accumulated(case, ((0, 5), (5, 10)), lambda n: 0.5)).verdict is Verdict.AGREE


def test_two_ranks_divided_twice(case):
    _, x, y = case

    def ranks(times):
        def step(net):
            mse_loss(net(x), y).backward()
            for p in net.parameters():
                p.grad /= 2 ** (times - 1)

        return step

    wrong(audited(case, ranks(2), sizes={"world size": 2}), "GA301", "world size")
    assert audited(case, ranks(1), sizes={"world size": 2}).verdict is Verdict.AGREE


def test_leftover_of_another_loss(case):
    net, x, y = case
    net(x).square().sum().backward()
    before = [(p.grad, p.grad.clone()) for p in net.parameters()]
    wrong(audited(case, lambda net: mse_loss(net(x), y).backward()), "GA806")
    assert all(p.grad is g and torch.equal(g, v) for p, (g, v) in zip(net.parameters(), before, strict=True))
    net.zero_grad()
    assert audited(case, lambda net: mse_loss(net(x), y).backward()).verdict is Verdict.AGREE


@pytest.mark.parametrize("zeroed", ["before", "after", "never"])
def test_zero_grad(case, zeroed):
    net, x, y = case
    optimiser = torch.optim.Adam(net.parameters())

    def step(net):
        if zeroed == "before":
            optimiser.zero_grad()
        mse_loss(net(x), y).backward()
        optimiser.step()
        if zeroed == "after":
            optimiser.zero_grad()

    before = [p.detach().clone() for p in net.parameters()]
    report = audited(case, step)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(net.parameters(), before, strict=True))
    assert not optimiser.state
    if zeroed == "never":
        wrong(report, "GA805", "times 2")
    else:
        assert report.verdict is Verdict.AGREE, str(report)


@pytest.mark.parametrize("unscaled", [False, True])
def test_clip_and_scale(case, unscaled):
    net, x, y = case
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(net):
        optimiser.zero_grad()
        scaler.scale(mse_loss(net(x), y)).backward()
        if unscaled:
            scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(net.parameters(), 1e3 if unscaled else 1.0)
        scaler.step(optimiser)
        scaler.update()

    report = audited(case, step)
    if unscaled:
        assert report.verdict is Verdict.AGREE, str(report)
    else:
        wrong(report, "GA307", "while scaled by 1024")
    step(net)  # the scaler still works


def test_everything_is_put_back_after_an_exception(case):
    net, x, y = case
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    backward = torch.autograd.backward

    def step(net):
        mse_loss(net(x), y).backward()
        optimiser.step()
        raise KeyError

    with pytest.raises(KeyError):
        audited(case, step)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(net.parameters(), before, strict=True))
    assert torch.autograd.backward is backward


def test_dropout_and_batch_norm_in_train_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1))
    x, y = torch.randn(10, 4), torch.randn(10, 1)
    buffers = [b.clone() for b in net.buffers()]
    report = audited((net, x, y), lambda net: mse_loss(net(x), y).backward())
    assert report.verdict is Verdict.AGREE, str(report)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), buffers, strict=True))


def test_a_momentum_that_is_there_is_put_back(case):
    net, x, y = case
    optimiser = torch.optim.Adam(net.parameters())

    def step(net):
        optimiser.zero_grad()
        mse_loss(net(x), y).backward()
        optimiser.step()

    step(net)
    kept = [(v, v.clone()) for state in optimiser.state.values() for v in state.values()]
    assert audited(case, step).verdict is Verdict.AGREE
    now = [v for state in optimiser.state.values() for v in state.values()]
    assert all(v is old and torch.equal(v, value) for v, (old, value) in zip(now, kept, strict=True))


def test_one_percent_in_one_tensor_is_found(case):
    _net, x, y = case

    def step(net):
        mse_loss(net(x), y).backward()
        net[0].weight.grad *= 1.01

    report = audited(case, step)
    assert report.verdict is Verdict.DISAGREE
    assert report.findings[0].parameters == ("0.weight",), str(report)


@pytest.mark.parametrize(
    ("factor", "code"), [(1.0, None), (-1.0, "GA303"), (0.1, "GA301"), (1.01, "GA301"), (0.0, "GA201")]
)
@pytest.mark.parametrize("optimised", [True, False])
def test_a_factor_of_one_tensor_is_named_in_float32(case, factor, code, optimised):
    net, x, y = case
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(net):
        net.zero_grad()
        for a in range(0, 10, 5):
            (mse_loss(net(x[a : a + 5]), y[a : a + 5]) / 2).backward()
        net[0].weight.grad *= factor
        if optimised:
            optimiser.step()

    report = audited(case, step)
    assert report.source == "a float64 twin"
    assert [finding.code for finding in report.findings] == ([] if code is None else [code]), str(report)
    assert [p.name for p in report.parameters if p.verdict is not Verdict.AGREE] == ["0.weight"] * (code is not None)


def test_a_factor_is_named_where_random_numbers_are_held():
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 1)), torch.randn(24, 6), torch.randn(24, 1)

    def step(net, factor=1.0):
        net.zero_grad()
        mse_loss(net(x), y).backward()
        net[0].weight.grad *= factor

    loss = lambda net: mse_loss(net(x), y)  # noqa: E731
    assert gradaudit.audit_step(net, step, loss=loss).verdict is Verdict.AGREE
    wrong(gradaudit.audit_step(net, lambda net: step(net, -1.0), loss=loss), "GA801")
    report = gradaudit.audit_step(net, lambda net: step(net, -1.0), loss=loss)
    assert "GA303" in [finding.code for finding in report.findings], str(report)


def test_a_clip_that_bites_is_named(case):
    _net, x, y = case

    def step(net):
        mse_loss(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.01)

    report = audited(case, step)
    wrong(report, "GA307")
    assert "scaled" not in report.findings[0].title


def test_dropout_in_a_whole_iteration():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1))
    x, y = torch.randn(10, 4), torch.randn(10, 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(net):
        optimiser.zero_grad()
        mse_loss(net(x), y).backward()
        optimiser.step()

    report = audited((net, x, y), step)
    assert report.verdict is Verdict.AGREE, str(report)


def test_two_faults_are_not_proven_to_be_one(case):
    net, _, _ = case
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    accumulate = accumulated(case, ((0, 7), (7, 10)), lambda n: 1 / 2)

    def step(net):
        accumulate(net)
        optimiser.step()

    report = audited(case, step)
    assert report.verdict is Verdict.DISAGREE
    assert not {"GA302", "GA805"} & {f.code for f in report.findings}, str(report)


def test_a_closure_is_refused(case):
    net, x, y = case
    optimiser = torch.optim.LBFGS(net.parameters())

    def closure():
        optimiser.zero_grad()
        loss = mse_loss(net(x), y)
        loss.backward()
        return loss

    with pytest.raises(ModelContractError, match="closure"):
        audited(case, lambda net: optimiser.step(closure))


def test_a_target_that_nobody_trains():
    with pytest.raises(AmbiguousBackendError, match="a training step of a str"):
        gradaudit.audit_step("net", lambda net: net, loss=lambda net: 0.0)


class TestCuts:
    """A line in the step that cuts the gradient is named, as in a loss."""

    @pytest.mark.parametrize("returns", [False, True])
    @pytest.mark.parametrize("cut", [False, True])
    def test_a_detach_in_a_whole_iteration(self, case, cut, returns):
        net, x, y = case
        optimiser = torch.optim.Adam(net.parameters())

        def step(net):
            optimiser.zero_grad()
            hidden = net[1](net[0](x))
            hidden = hidden.detach() if cut else hidden
            value = mse_loss(net[2](hidden), y)
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1e6)
            optimiser.step()
            value.item()
            return value

        report = gradaudit.audit_step(net, step, loss=None if returns else lambda net: mse_loss(net(x), y))
        if cut:
            wrong(report, "GA101", f"detach at test_torch_step.py:{step.__code__.co_firstlineno + 3} in step (once)")
            assert len(report.findings) == 1, str(report)
            assert report.findings[0].parameters == ("0.weight", "0.bias")
        else:
            assert report.verdict is Verdict.AGREE, str(report)

    def test_no_grad_around_a_micro_batch(self, case):
        _, x, y = case

        def step(net):
            with torch.no_grad():
                first = net[0](x[:5])
            (mse_loss(net[2](net[1](first)), y[:5]) / 2).backward()
            (mse_loss(net(x[5:]), y[5:]) / 2).backward()

        report = audited(case, step)
        wrong(report, "GA101", f"no_grad at test_torch_step.py:{step.__code__.co_firstlineno + 1} in step")

    @pytest.mark.parametrize("meant", [False, True])
    def test_a_cut_in_the_module_may_be_meant(self, meant):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 1)

            def forward(self, x):
                hidden = torch.tanh(self.first(x))
                return self.second(hidden) + hidden.detach().sum(1, keepdim=True)

        torch.manual_seed(0)
        net, x, y = Net(), torch.randn(10, 4), torch.randn(10, 1)
        options = {"intended": ["*forward*"]} if meant else {}
        report = audited((net, x, y), lambda net: mse_loss(net(x), y).backward(), **options)
        if meant:
            assert report.verdict is Verdict.AGREE, str(report)
            assert report.judged == "frozen"
        else:
            wrong(report, "GA101", "detach at test_torch_step.py")

    def test_a_cut_that_does_nothing_is_not_blamed(self, case):
        _, x, y = case

        def step(net):
            target = y + 0 * net(x).detach()
            (2 * mse_loss(net(x), target)).backward()

        wrong(audited(case, step, sizes={"two": 2}), "GA301", "two, 2")


class TestReturned:
    """Without ``loss=``, what the step returns is the objective."""

    def audited(self, case, step, **options):
        return gradaudit.audit_step(case[0], step, **options)

    @pytest.mark.parametrize("factor", [1, 1.01])
    @pytest.mark.parametrize("form", [lambda v: v, lambda v: v.item(), lambda v: (2, v.detach())])
    def test_a_whole_iteration(self, case, form, factor):
        net, x, y = case
        optimiser = torch.optim.Adam(net.parameters())

        def step(net):
            optimiser.zero_grad()
            value = mse_loss(net(x), y)
            value.backward()
            net[0].weight.grad *= factor
            optimiser.step()
            assert all(p.grad is not None for p in net.parameters())
            return form(value)

        step(net)  # moments in float32 are there
        before = seen_of(net, optimiser)
        report = self.audited(case, step)
        assert_unchanged(before, seen_of(net, optimiser))
        assert report.source == "a float64 twin"
        if factor == 1:
            assert report.verdict is Verdict.AGREE, str(report)
        else:
            assert report.verdict is Verdict.DISAGREE
            assert [p.name for p in report.parameters if p.verdict is Verdict.DISAGREE] == ["0.weight"], str(report)

    def test_each_run_for_a_loss_counts(self, case):
        _, x, y = case
        runs = []

        def step(net):
            runs.append(1)
            value = mse_loss(net(x), y)
            value.backward()
            return value

        report = self.audited(case, step)
        with_loss = audited(case, step)
        assert report.evaluations == with_loss.evaluations == 1 + 3 + 21 + 8 * (1 + 4)

    def test_the_losses_are_those_of_the_objective(self, case):
        net, x, y = case

        def step(net):
            value = mse_loss(net(x), y)
            value.backward()
            return value

        report = self.audited(case, step)
        assert report.loss == mse_loss(net(x), y).item()

    @pytest.mark.parametrize("p", [0.3, 0.0])
    def test_dropout_draws_the_same(self, p):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(p), nn.Linear(6, 1))
        x, y = torch.randn(10, 4), torch.randn(10, 1)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        buffers, random = [b.clone() for b in net.buffers()], torch.get_rng_state()

        def step(net, sign=1):
            optimiser.zero_grad()
            value = mse_loss(net(x), y)
            (sign * value).backward()
            optimiser.step()
            return value

        assert self.audited((net, x, y), step).verdict is Verdict.AGREE
        wrong(self.audited((net, x, y), lambda net: step(net, -1)), "GA303")
        assert all(torch.equal(a, b) for a, b in zip(net.buffers(), buffers, strict=True))
        assert torch.equal(torch.get_rng_state(), random)

    def test_a_recurrent_layer_has_a_twin(self):
        torch.manual_seed(0)
        net, x = nn.LSTM(3, 2), torch.randn(4, 2, 3)

        def step(net):
            value = net(x)[0].square().mean()
            value.backward()
            return value

        report = self.audited((net,), step)
        assert report.verdict is Verdict.AGREE, str(report)
        assert report.source == "a float64 twin"

    @pytest.mark.parametrize("cast", [False, True])
    def test_what_cannot_run_in_float64_has_no_twin(self, case, cast):
        _, x, y = case

        def step(net):
            if cast and net[0].weight.dtype is not torch.float32:
                raise TypeError
            value = mse_loss(net(x), y)
            value.backward()
            return value

        report = self.audited(case, step)
        assert report.source == ("the float32 loss itself" if cast else "a float64 twin")
        assert report.verdict is not Verdict.DISAGREE, str(report)

    @pytest.mark.parametrize("whole", [False, True])
    def test_micro_batches_whose_sum_or_last_is_returned(self, case, whole):
        _, x, y = case

        def step(net):
            total = 0.0
            for rows in (slice(0, 5), slice(5, 10)):
                value = mse_loss(net(x[rows]), y[rows]) / 2
                value.backward()
                total = total + value.detach()
            return total if whole else value

        report = self.audited(case, step)
        assert report.verdict is (Verdict.AGREE if whole else Verdict.DISAGREE), str(report)

    @pytest.mark.parametrize("forgotten", [False, True])
    def test_a_forgotten_zero_grad(self, case, forgotten):
        net, x, y = case
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)

        def step(net):
            if not forgotten:
                optimiser.zero_grad()
            value = mse_loss(net(x), y)
            value.backward()
            optimiser.step()
            return value

        report = self.audited(case, step)
        if forgotten:
            wrong(report, "GA805", "times 2")
        else:
            assert report.verdict is Verdict.AGREE, str(report)

    @pytest.mark.parametrize("returned", [None, 3, "loss", (None, torch.ones(2) if __test__ else 0)])
    def test_no_loss_is_returned(self, case, returned):
        net, x, y = case

        def step(net):
            mse_loss(net(x), y).backward()
            return returned

        with pytest.raises(ModelContractError, match="no loss= is given"):
            self.audited(case, step)
        assert all(p.grad is None for p in net.parameters())

    def test_after_an_exception_in_float64_all_is_as_before(self, case):
        net, x, y = case
        net(x).sum().backward()
        before = [(p, p.data_ptr(), p.dtype, p.grad, p.grad.clone()) for p in net.parameters()]

        def step(net):
            net.zero_grad()
            value = mse_loss(net(x), y)
            value.backward()
            if value.dtype == torch.float64:
                raise KeyboardInterrupt
            return value

        with pytest.raises(KeyboardInterrupt):
            self.audited(case, step)
        for p, pointer, dtype, gradient, value in before:
            assert (p.data_ptr(), p.dtype) == (pointer, dtype)
            assert p.grad is gradient
            assert torch.equal(gradient, value)


def seen_of(net, optimiser):
    """Parameters, gradients and an optimiser's state: the tensors, and their values now."""
    state = [v for p in net.parameters() for v in optimiser.state[p].values()]
    tensors = [*net.parameters(), *(p.grad for p in net.parameters()), *state]
    return [(x, x.detach().clone()) for x in tensors]


def assert_unchanged(before, after):
    assert len(before) == len(after)
    assert all(x is z and torch.equal(y, w) for (x, y), (z, w) in zip(before, after, strict=True))
