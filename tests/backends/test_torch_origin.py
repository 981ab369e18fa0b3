"""Where the gradient of a PyTorch program stops being finite: operation and line."""

from __future__ import annotations

import numpy as np
import pytest

from gradaudit.backends import registry
from gradaudit.protocols import SupportsOrigin
from tests import conftest
from tests.backends.cutting import marked

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()


@pytest.fixture
def torch():
    import torch

    return torch


def base(dtype="float64"):
    """Some zeros, and zeros."""
    return {"x": np.array([1.0, 0, 2], dtype), "z": np.zeros(3, dtype)}


def origin(function, dtype="float64"):
    m = registry.get("torch").function_model(function, base(dtype))
    assert isinstance(m, SupportsOrigin)
    return m.origin()


def check(function, operation, *, forward=False, of=None):
    m = registry.get("torch").function_model(function, base())
    gradients = m.value_and_grad(m.parameters())[1]
    assert not all(np.isfinite(g).all() for g in gradients.values() if g is not None)
    found = m.origin()
    assert (found.operation, found.path, [found.line]) == (operation, __file__, marked(of or function))
    assert (found.function, found.forward) == ((of or function).__qualname__.rpartition("<locals>.")[2], forward)


def test_the_where_trap(torch):
    def loss(p):
        safe = p["x"] > 0
        logarithm = torch.log(p["x"])  # CUT
        return torch.where(safe, logarithm, 0.0).sum()

    check(loss, "log", forward=True)

    def mended(p):
        safe = p["x"] > 0
        return torch.where(safe, torch.log(torch.where(safe, p["x"], 1.0)), 0.0).sum()

    assert origin(mended) is None


def test_the_norm_at_zero(torch):
    def loss(p):
        squares = (p["z"] * 2).square()
        return squares.sum().sqrt() + p["x"].norm()  # CUT

    check(loss, "sqrt")
    assert origin(lambda p: (p["z"] * 2).norm() + torch.linalg.norm(p["z"])) is None


def divided(p):
    ratio = p["z"] / p["x"]  # CUT
    return ratio[0] + ratio[1] * 0


def powered(p):
    return (p["z"] ** 0.5).sum()  # CUT


def nothing_times_infinity(p):
    h = (p["x"] * 1000).exp()  # CUT
    return (h * (p["x"] == 0)).sum() + h[:0].sum()


def inverted(p):
    return (1 / p["z"]).clamp(max=1).sum()  # CUT


def in_place(p):
    h = p["z"] * 1
    h.sqrt_()  # CUT
    return h.sum()


def written(p):
    h = p["z"] * 1
    h[0] = p["x"][1].sqrt()  # CUT
    return h.sum()


@pytest.mark.parametrize(
    ("function", "operation", "forward"),
    [
        (divided, "div", True),
        (powered, "pow", False),
        (nothing_times_infinity, "exp", True),
        (inverted, "div", True),
        (in_place, "sqrt", False),
        (written, "sqrt", False),
    ],
)
def test_operations(torch, function, operation, forward):
    check(function, operation, forward=forward)


def test_a_namespace(torch):
    def special(p):
        return torch.special.xlogy(p["z"], p["z"]).sum()  # CUT

    def vectors(p):
        return torch.linalg.eigh(torch.outer(p["z"], p["z"]))[1].sum()  # CUT

    check(special, "special.xlogy")
    check(vectors, "linalg.eigh")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_finite_gradient(torch, dtype):
    assert origin(lambda p: p["x"].cumprod(0).sum() + p["x"].prod() + torch.atan2(p["z"], p["z"]).sum(), dtype) is None
    assert origin(lambda p: p["x"].sum() + float("inf"), dtype) is None
    assert origin(lambda p: torch.ones(())) is None
    assert origin(lambda p: torch.where(p["x"] == 0, 1.0, p["x"].log().detach()).sum() * p["z"].sum()) is None


def test_inside_modules_it_is_the_users_line(torch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(3, 3, dtype=torch.float64)
            self.distance = torch.nn.Sequential(torch.nn.Identity(), torch.nn.LogSigmoid())

        def forward(self, x):
            h = self.first(x) * 0
            root = torch.sqrt(h)  # CUT
            return self.distance(root).sum()

    net = Net()
    check(lambda p: net(p["x"]), "sqrt", of=Net.forward)

    softplus = torch.nn.Sequential(torch.nn.Identity(), Root())

    def outer(p):
        return softplus(p["z"]).sum()

    found = origin(outer)
    assert (found.operation, [found.line]) == ("sqrt", marked(Root))


def Root():  # noqa: N802
    import torch

    class Module(torch.nn.Module):
        def forward(self, x):
            return x.sqrt()  # CUT

    return Module()


def test_a_hand_written_rule(torch):
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sqrt()

        @staticmethod
        def backward(ctx, g):
            return g * 0.5 / ctx.saved_tensors[0].sqrt()

    apply = Root.apply

    def loss(p):
        h = apply(p["x"] + 1) * 2
        return (apply(p["z"]) + h).sum()  # CUT

    check(loss, "Root")


def test_an_operation_that_no_mode_sees(torch):
    scripted = torch._C._VariableFunctions.sqrt

    def loss(p):
        with torch._C.DisableTorchFunction():
            h = scripted(p["z"])
        return h.sin().sum()  # CUT

    # the line where its result is used first
    check(loss, "sqrt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("how", ["checkpoint", "compile"])
def test_in_checkpoints_and_compiled_functions(torch, how):
    def step(x):
        h = x.sin() * 2
        return h.sqrt()  # CUT

    compiled = torch.compile(step, backend="eager")

    def loss(p):
        if how == "compile":
            return compiled(p["z"]).sum()
        return torch.utils.checkpoint.checkpoint(step, p["z"], use_reentrant=False).sum()

    check(loss, "sqrt", of=step)


def test_in_transforms_and_second_derivatives(torch):
    def transformed(p):
        each = torch.func.vmap(torch.func.grad(lambda x: (x * 3).square().sqrt()))
        return each(p["z"]).sum()  # CUT

    def penalty(p):
        h = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(((p["x"] * h).abs() ** 1.5).sum(), h, create_graph=True)  # CUT
        return slope.square().sum()

    found = origin(transformed)
    assert (found.path, [found.line]) == (__file__, marked(transformed))
    found = origin(penalty)
    assert (found.operation, [found.line], found.forward) == ("autograd.grad", marked(penalty), False)


def test_an_overflow(torch):
    def loss(p):
        small = p["x"] * 1e-200
        large = small * 1e200 * 1e200  # CUT
        return large.sum() * 1e200

    def total(p):
        h = p["x"] * 1
        return (h * 1e308).sum() + (h * 1e308).sum()

    assert origin(loss).operation == "mul"
    assert origin(total).operation == "mul"


def test_the_graph_and_pytorch_are_left_as_they_were(torch):
    from torch.overrides import _get_current_function_mode_stack

    outside = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    root = outside.sqrt()
    fails = False

    def loss(p):
        if fails:
            raise ValueError
        return (p["z"].sqrt() + root).sum()  # CUT

    check(loss, "sqrt")
    before = torch.get_rng_state()
    m = registry.get("torch").function_model(loss, base())
    fails = True
    with pytest.raises(ValueError):
        m.origin()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert not _get_current_function_mode_stack()
    called = []
    root.grad_fn.register_hook(lambda *_: called.append(1))
    torch.autograd.grad(root.sum(), outside)
    assert called == [1]
    assert "__init_subclass__" not in torch.autograd.Function.__dict__
