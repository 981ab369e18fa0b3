"""TF32 and random numbers: a float32 model beside its float64 twin, on PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from tests import conftest

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()


@pytest.fixture
def torch():
    import torch

    return torch


def rounded(torch, x, bits=13):
    """Float32 numbers without their last bits, to nearest: without 13, TF32; without 16, bfloat16."""
    whole = (x.detach().contiguous().view(torch.int32) + (1 << (bits - 1))) >> bits << bits
    return whole.view(torch.float32)


def product(torch, factor=1.0):
    """A product of matrices as a GPU computes it in TF32; float64 as it is. Its backward is off by a factor."""

    def multiplied(x, w):
        if x.dtype == torch.float64:
            return x @ w
        return rounded(torch, x) @ rounded(torch, w)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return multiplied(x, w)

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return factor * multiplied(g, w.T), factor * multiplied(x.T, g)

    return Product.apply


def case(torch, seed, factor=1.0):
    torch.manual_seed(seed)
    multiplied = product(torch, factor)
    x, y = torch.randn(16, 96), torch.randint(4, (16,))
    net = torch.nn.ParameterDict({"w": torch.randn(96, 256) / 10, "v": torch.randn(256, 4) / 16})

    def loss(net):
        x_ = x.to(net["w"].dtype)
        return torch.nn.functional.cross_entropy(multiplied(torch.tanh(multiplied(x_, net["w"])), net["v"]), y)

    return net, loss


class TestTf32:
    """The formats that only a GPU has, made of float32 here; ``benchmarks/accelerators.py`` is the real thing."""

    @pytest.fixture
    def tf32(self, torch, monkeypatch):
        from gradaudit.backends.torch import narrow

        exact = narrow._product
        monkeypatch.setattr(narrow, "_product", lambda kind, x, device: exact(kind, as_format(torch, x, 13), device))
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")

    @pytest.mark.parametrize("kind", ["matrices", "images", "steps"])
    @pytest.mark.parametrize(("bits", "eps"), [(0, 0.0), (13, 2.0**-10), (16, 2.0**-7)])
    def test_digits_are_counted_in_the_product_itself(self, torch, monkeypatch, kind, bits, eps):
        from gradaudit.backends.torch import narrow

        exact = narrow._product
        monkeypatch.setattr(narrow, "_product", lambda kind, x, device: exact(kind, as_format(torch, x, bits), device))
        assert narrow._eps(kind, torch.device("cpu")) == eps

    @pytest.mark.usefixtures("tf32")
    @pytest.mark.parametrize("seed", range(6))
    def test_a_gradient_in_tf32_agrees(self, torch, seed):
        net, loss = case(torch, seed)
        report = gradaudit.audit(net, loss=loss)
        assert report.verdict is Verdict.AGREE, str(report)
        assert (report.source, report.findings) == ("a float64 twin", ())

    @pytest.mark.usefixtures("tf32")
    @pytest.mark.parametrize("seed", range(3))
    def test_a_wrong_one_does_not(self, torch, seed):
        net, loss = case(torch, seed, factor=1.01)
        report = gradaudit.audit(net, loss=loss)
        assert report.verdict is Verdict.DISAGREE, str(report)
        assert report.findings[0].code == "GA501"

    def test_where_float32_is_not_that_narrow_it_is_named(self, torch):
        net, loss = case(torch, 0)
        report = gradaudit.audit(net, loss=loss)
        assert [f.code for f in report.findings] == ["GA703"], str(report)

    def test_either_interface_of_the_flags_will_do(self, torch):
        before = torch.backends.fp32_precision
        net = torch.nn.Linear(8, 4)
        try:
            torch.backends.fp32_precision = "tf32"
            report = gradaudit.audit(net, loss=lambda net: net(torch.ones(2, 8)).square().mean())
            assert torch.backends.fp32_precision == "tf32"
        finally:
            torch.backends.fp32_precision = before
        assert report.verdict is Verdict.AGREE

    def test_only_products_of_float32_count(self, torch):
        from gradaudit.backends.torch.narrow import _Products

        def kinds(call):
            with torch.no_grad(), _Products() as products:
                call()
            return {kind for kind, _ in products.pairs}

        x = torch.randn(2, 3, 8, 8)
        assert kinds(lambda: torch.nn.Linear(8, 2)(x)) == {"matrices"}
        assert kinds(lambda: torch.nn.Conv2d(3, 2, 3)(x)) == {"images"}
        assert kinds(lambda: torch.nn.Linear(8, 2).double()(x.double())) == set()
        assert kinds(lambda: torch.tanh(x).sum()) == set()


def as_format(torch, value, bits):
    return float(rounded(torch, torch.tensor(value, dtype=torch.float32), bits)) if bits else value


class TestRandomNumbers:
    """The twin draws what the model draws: float64 tensors would draw others."""

    X = np.random.default_rng(0).standard_normal((32, 8)).astype("float32")

    def losses(self, torch, spoil=lambda x: x):
        functional, x = torch.nn.functional, torch.from_numpy(self.X)

        def sampled(net):
            mean, log_variance = net(x).chunk(2, 1)
            return (mean + torch.exp(spoil(log_variance) / 2) * torch.randn_like(mean) - x).square().mean()

        def distribution(net):
            mean, scale = net(x).chunk(2, 1)
            normal = torch.distributions.Normal(mean, functional.softplus(spoil(scale)))
            return (normal.rsample() - x).square().mean() - normal.entropy().mean()

        return {
            "randn_like": sampled,
            "rsample": distribution,
            "gumbel_softmax": lambda net: functional.gumbel_softmax(spoil(net(x))).square().mean(),
            "dropout": lambda net: functional.dropout(spoil(net(x)), 0.3).square().mean() + net(x).mean(),
            "randn": lambda net: (
                (torch.randn(32, 16, dtype=net.weight.dtype) * spoil(net(x))).square().mean() + net(x).mean()
            ),
        }

    @pytest.mark.parametrize("name", ["randn_like", "rsample", "gumbel_softmax", "dropout", "randn"])
    def test_a_right_gradient_agrees_through_the_twin(self, torch, name):
        net = torch.nn.Linear(8, 16)
        before = torch.get_rng_state()
        report = gradaudit.audit(net, loss=self.losses(torch)[name])
        assert report.verdict is Verdict.AGREE, str(report)
        assert report.source == "a float64 twin"
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", ["randn_like", "rsample", "gumbel_softmax", "dropout", "randn"])
    def test_a_cut_one_does_not(self, torch, name):
        report = gradaudit.audit(torch.nn.Linear(8, 16), loss=self.losses(torch, lambda x: x.detach())[name])
        assert report.verdict is Verdict.DISAGREE, str(report)
        assert "GA101" in {f.code for f in report.findings}

    def test_dropout_as_a_gpu_has_it(self, torch):
        """One operator draws and multiplies there: `native_dropout`."""
        from gradaudit.backends.torch.widening import _Draws

        x = torch.randn(64, dtype=torch.float64)
        torch.manual_seed(3)
        _, kept = torch.native_dropout(torch.ones(64), 0.5, True)
        torch.manual_seed(3)
        with _Draws() as draws:
            y, mask = torch.native_dropout(x, 0.5, True)
        assert draws.met
        assert torch.equal(mask, kept)
        assert torch.equal(y, x * kept * 2)
