"""The drop-in for `torch.autograd.gradcheck`, in a test file as projects write it.

The function and its test are those of PyTorch's notes, "Extending PyTorch" (the linear function and its ``gradcheck``),
written for the original; only the import is another one.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gradaudit
from tests import conftest
from tests.backends import programs

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()

if __test__:
    import torch

    from gradaudit.dropin.torch import GradcheckError, gradcheck, gradgradcheck


def linear_function(wrong=1.0):
    class LinearFunction(torch.autograd.Function):
        @staticmethod
        def forward(input, weight, bias):  # noqa: A002
            output = input.mm(weight.t())
            if bias is not None:
                output += bias.unsqueeze(0).expand_as(output)
            return output

        @staticmethod
        def setup_context(ctx, inputs, output):
            input, weight, bias = inputs  # noqa: A001
            ctx.save_for_backward(input, weight, bias)

        @staticmethod
        def backward(ctx, grad_output):
            input, weight, bias = ctx.saved_tensors  # noqa: A001
            grad_input = grad_weight = grad_bias = None
            if ctx.needs_input_grad[0]:
                grad_input = grad_output.mm(weight)
            if ctx.needs_input_grad[1]:
                grad_weight = wrong * grad_output.t().mm(input)
            if bias is not None and ctx.needs_input_grad[2]:
                grad_bias = grad_output.sum(0)
            return grad_input, grad_weight, grad_bias

    return LinearFunction.apply


def inputs(dtype=None):
    torch.manual_seed(0)
    dtype = dtype or torch.double
    return (
        torch.randn(20, 20, dtype=dtype, requires_grad=True),
        torch.randn(30, 20, dtype=dtype, requires_grad=True),
        None,
    )


def ripple(*, right, calls):
    """X^2 with a ripple as long as gradcheck's eps, of a ten-millionth of its height; its slope is half of all."""
    start, eps = 0.7, 1e-6

    class Ripple(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls.append(1)
            ctx.save_for_backward(x)
            return x * x + eps / torch.pi * torch.sin(torch.pi * (x - start) / eps)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * (2 * x + right * torch.cos(torch.pi * (x - start) / eps))

    return Ripple.apply, (torch.tensor(start, dtype=torch.double, requires_grad=True),)


@pytest.mark.parametrize("fast", [False, True])
def test_from_as_few_evaluations_as_gradcheck_nobody_could_tell(fast):
    """Decision 0018: at its three points, f(x) and f(x +- eps), the ripple is zero."""
    for right in (False, True):
        calls: list[int] = []
        function, given = ripple(right=right, calls=calls)
        assert torch.autograd.gradcheck(function, given, raise_exception=False, fast_mode=fast) is not right
        assert len(calls) <= 5
        assert gradcheck(function, given, raise_exception=False) is right
        report = gradaudit.audit_operator(function, *given, modes=["reverse"])
        assert report.evaluations == (46 if right else 54)


def test_the_notes_own_check():
    assert gradcheck(linear_function(), inputs(), eps=1e-6, atol=1e-4)
    assert gradgradcheck(linear_function(), inputs(), eps=1e-6, atol=1e-4)


def test_in_float32_where_the_original_fails():
    assert gradcheck(linear_function(), inputs(torch.float32))
    with pytest.warns(UserWarning, match="double precision"):
        assert not torch.autograd.gradcheck(linear_function(), inputs(torch.float32), raise_exception=False)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_broken_rule(name):
    dtype = getattr(torch, name)
    with pytest.raises(GradcheckError, match="wrong backward of LinearFunction") as raised:
        gradcheck(linear_function(1.02), inputs(dtype))
    assert raised.value.report.part("reverse").findings[0].code == "GA501"
    assert not gradcheck(linear_function(1.02), inputs(dtype), raise_exception=False)


def test_no_tolerance_is_a_licence():
    assert not gradcheck(linear_function(1.02), inputs(), rtol=1.0, atol=1e9, raise_exception=False)
    # half a per mille is less than what the caller says matters
    assert gradcheck(linear_function(1.0005), inputs(), rtol=1e-3)
    assert not gradcheck(linear_function(1.0005), inputs(), rtol=1e-4, raise_exception=False)


def test_a_zero_gradient_at_a_small_scale():
    scaled = lambda x: 1e-7 * x.detach().square().sum() + 0 * x.sum()  # noqa: E731
    x = torch.randn(5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(scaled, (x,))  # its floor is absolute
    assert not gradcheck(scaled, (x,), raise_exception=False)


def test_signatures():
    for mine, theirs in ((gradcheck, torch.autograd.gradcheck), (gradgradcheck, torch.autograd.gradgradcheck)):
        named = lambda f: [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]  # noqa: E731
        assert named(mine) == named(theirs)


def test_inputs_that_require_no_gradient():
    with pytest.raises(ValueError, match="at least one input tensor to require gradient"):
        gradcheck(torch.sin, torch.ones(3))
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    frozen = torch.randn(4, 2, dtype=torch.double)
    assert gradcheck(torch.matmul, (x, frozen))
    assert x.grad is None


def test_other_modes():
    x = torch.randn(8, dtype=torch.double, requires_grad=True)
    every = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(torch.sin, (x,), check_grad_dtypes=True, **every)
    assert gradgradcheck(torch.sin, (x,), check_fwd_over_rev=True, check_batched_grad=True)
    with pytest.raises(AssertionError, match="check_forward_ad or check_backward_ad"):
        gradcheck(torch.sin, (x,), check_backward_ad=False)
    with pytest.raises(AssertionError, match="check_fwd_over_rev or check_rev_over_rev"):
        gradgradcheck(torch.sin, (x,), check_rev_over_rev=False)


def sine_with(vjp):
    """An autograd.Function for sin."""
    return programs.words("torch").with_vjp(lambda own, x: own.sin(x), vjp)


def test_a_second_derivative_that_is_wrong():
    sine = sine_with(lambda own, x, g: g * own.stop(own.cos(x)))
    x = torch.randn(8, dtype=torch.double, requires_grad=True)
    assert gradcheck(sine, (x,))
    assert not gradgradcheck(sine, (x,), raise_exception=False)


def test_an_undefined_gradient_is_asked_of_pytorch():
    class Two(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x.clone(), 2 * x

        @staticmethod
        def backward(ctx, a, b):
            return a + 2 * b  # fails where one of them is None

    x = torch.randn(8, dtype=torch.double, requires_grad=True)
    assert gradcheck(Two.apply, (x,), check_undefined_grad=False)
    with pytest.raises((GradcheckError, TypeError)):
        gradcheck(Two.apply, (x,))


def test_a_gradient_that_does_not_repeat_itself():
    noisy = sine_with(lambda own, x, g: g * own.cos(x) * (1 + 1e-9 * torch.rand((), dtype=x.dtype)))
    x = torch.randn(8, dtype=torch.double, requires_grad=True)
    assert not gradcheck(noisy, (x,), raise_exception=False)
    assert gradcheck(noisy, (x,), nondet_tol=1e-6)


class TestEntmax:
    """A public project's own tests of its autograd.Functions, entmax (github.com/deep-spin/entmax, MIT License).

    Its wheel brings them. They run as they are installed, but for the one import, and are never copied here. They use
    random numbers without a seed, which is set from outside, as is the fault.
    """

    FAULT = """
from entmax.activations import SparsemaxFunction

right = SparsemaxFunction.backward.__func__
SparsemaxFunction.backward = classmethod(lambda cls, ctx, g: (1.01 * right(cls, ctx, g)[0], None, None))
"""

    @staticmethod
    def run(folder, name, fault=""):
        path = Path(importlib.util.find_spec(f"entmax.{name}").origin)
        source = path.read_text(encoding="utf-8")
        theirs, mine = r"^from torch\.autograd import gradcheck\b.*$", "from gradaudit.dropin.torch import gradcheck"
        ours = re.sub(theirs, mine, source, flags=re.MULTILINE)
        assert ours != source
        (folder / f"{name}.py").write_text(ours, encoding="utf-8")
        (folder / "conftest.py").write_text(f"import torch\n\ntorch.manual_seed(0)\n{fault}", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", f"{name}.py"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    @pytest.mark.parametrize(("name", "n_tests"), [("test_losses", 42), ("test_topk", 33)])
    def test_green(self, tmp_path, name, n_tests):
        done = self.run(tmp_path, name)
        assert done.returncode == 0, done.stdout
        assert f"{n_tests} passed" in done.stdout

    def test_red_where_its_rule_is_broken(self, tmp_path):
        done = self.run(tmp_path, "test_topk", self.FAULT)
        assert done.returncode == 1
        assert "3 failed, 30 passed" in done.stdout, done.stdout
        assert "wrong backward of SparsemaxFunction" in done.stdout
