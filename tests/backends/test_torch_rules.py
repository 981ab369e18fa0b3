"""Hand-written PyTorch derivatives: each beside the derivative of its primal, and replaced by it."""

from __future__ import annotations

import importlib.util
import math
import threading

import numpy as np
import pytest

from gradaudit.backends import registry
from gradaudit.protocols import SupportsRules
from tests import conftest
from tests.backends.cutting import base, marked
from tests.backends.test_torch_cuts import differences

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()


@pytest.fixture
def torch():
    import torch

    return torch


def model(function, parameters=None):
    return registry.get("torch").function_model(function, base() if parameters is None else parameters)


def assert_close(actual, expected, tolerance):
    for name, value in expected.items():
        both = [np.zeros_like(base()[name]) if g is None else g for g in (actual[name], value)]
        np.testing.assert_allclose(*both, rtol=tolerance, atol=tolerance)


def tanh(factor):
    """A layer whose gradient is too large by a factor."""
    import torch

    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = torch.tanh(x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, g):  # CUT
            (y,) = ctx.saved_tensors
            return factor * g * (1 - y * y)

    return Tanh


def raw(cls):
    """What is written in a class, as it is."""
    return {name: cls.__dict__.get(name) for name in ("forward", "backward", "setup_context", "vjp")}


def check_right(m, executions=None):
    """Rules without error, which may be replaced by their primals all the same."""
    before = m.value_and_grad(m.parameters())
    rules = m.rules()
    assert rules
    assert all(rule.error < 1e-9 for rule in rules)
    if executions is not None:
        assert [rule.executions for rule in rules] == executions
    loss, gradients = m.replacing(rules).value_and_grad(m.parameters())
    assert loss == before[0]
    assert_close(gradients, before[1], 1e-9)
    return rules


def check_wrong(m, error, argument=0):
    """One wrong rule among all; with it replaced, and only with it, the gradient is that of the loss."""
    true = differences(m)
    with pytest.raises(AssertionError):
        assert_close(m.value_and_grad(m.parameters())[1], true, 1e-6)
    rules = m.rules()
    (wrong,) = [rule for rule in rules if not rule.error < 1e-9]
    assert wrong.error == pytest.approx(error, rel=1e-7)
    assert wrong.argument == argument
    replaced = m.replacing([wrong])
    loss, gradients = replaced.value_and_grad(m.parameters())
    assert loss == pytest.approx(m.loss(m.parameters()), rel=1e-14)
    assert_close(gradients, true, 1e-8)
    assert all(rule.error < 1e-9 for rule in replaced.rules())
    if others := [rule for rule in rules if rule != wrong]:
        with pytest.raises(AssertionError):
            assert_close(m.replacing(others).value_and_grad(m.parameters())[1], true, 1e-6)
    return wrong


def test_the_third_of_six_layers(torch):
    layers = [tanh(1.5 if i == 2 else 1) for i in range(6)]
    layers[2].__qualname__ = "Third"

    def loss(p):
        h = p["b"]
        for layer in layers:
            h = layer.apply(p["W"] @ h)
        return (h**2).sum()

    m = model(loss)
    assert isinstance(m, SupportsRules)
    # the six are one class, but for the name
    right, wrong = m.rules()
    assert (right.kind, right.name, right.path, [right.line]) == ("autograd.Function", "Tanh", __file__, marked(tanh))
    assert (right.executions, wrong.executions) == (5, 1)
    assert check_wrong(m, 0.5).name == "Third"


def test_no_rules(torch):
    layer = tanh(1.5)

    def loss(p):
        constant = layer.apply(torch.ones(3, dtype=torch.float64))
        other = layer.apply(torch.ones(3, dtype=torch.float64, requires_grad=True))
        layer.apply(p["b"])  # unused
        return (p["b"] * constant.sum() * other).sum() + torch.utils.checkpoint.checkpoint(
            torch.sin, p["W"].sum(), use_reentrant=False
        )

    assert model(loss).rules() == ()
    assert model(lambda p: 1.0).rules() == ()


def scaled_sum(torch, wrong):
    class ScaledSum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, scale, b, constant, c):
            ctx.scale = scale
            ctx.save_for_backward(a, b, c, constant)
            return scale * a * b * constant + c.sin()

        @staticmethod
        def backward(ctx, g):
            a, b, c, constant = ctx.saved_tensors
            assert ctx.needs_input_grad == (True, False, True, False, True)
            return (
                ctx.scale * g * b * constant,
                None,
                ctx.scale * g * a * constant * (2 if wrong == 1 else 1),
                None,
                None if wrong == 2 else g * c.cos(),
            )

    return ScaledSum


@pytest.mark.parametrize(("wrong", "error"), [(1, 1.0), (2, 1.0), (None, 0.0)])
def test_one_of_three_inputs(torch, wrong, error):
    function = scaled_sum(torch, wrong)

    def loss(p):
        constant = torch.arange(1.0, 4.0, dtype=torch.float64)
        return function.apply(p["b"], 2.0, p["W"][0], constant, p["W"][1]).square().sum()

    if wrong is None:
        check_right(model(loss), [1])
    else:
        check_wrong(model(loss), error, argument=wrong)


@pytest.mark.parametrize("factor", [1, 2])
def test_one_tensor_given_twice(torch, factor):
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            # right for a square, not for a product: all of it goes to the first
            return (factor * g * 2 * a, None) if a is b or a.data_ptr() == b.data_ptr() else (g * b, g * a)

    def loss(p):
        return Product.apply(p["b"], p["b"]).sin().sum() + Product.apply(p["b"], p["W"][0]).sum()

    if factor == 1:
        check_right(model(loss), [2])
    else:
        check_wrong(model(loss), 1.0)


@pytest.mark.parametrize("wrong", [False, True])
def test_a_forward_in_numpy(torch, wrong):
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.from_numpy(np.sin(x.detach().numpy()))

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x.cos() * (1.5 if wrong else 1)

    def loss(p):
        return Sine.apply(p["W"] @ p["b"]).square().sum()

    if wrong:
        check_wrong(model(loss), 0.5)
    else:
        check_right(model(loss), [1])


def test_a_large_forward_in_numpy_is_compared_but_not_replaced(torch):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.from_numpy(2 * x.detach().numpy())

        @staticmethod
        def backward(ctx, g):
            return 3 * g

    m = model(lambda p: Double.apply(p["x"]).square().sum(), {"x": np.linspace(1, 2, 1000)})
    (rule,) = m.rules()
    assert rule.error == pytest.approx(0.5, rel=1e-7)
    assert m.replacing([rule]) is None


@pytest.mark.parametrize("cut", ["no_grad", "detach", "item", "data"])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_forward_that_cuts_what_autograd_sees_of_it(torch, cut, wrong):
    def size(x):
        if cut == "no_grad":
            with torch.no_grad():
                return x.square().sum()
        if cut == "item":
            return x.square().sum().item()
        return (x.detach() if cut == "detach" else x.data).square().sum()

    class Sized(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * size(x)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * x.square().sum() + (0 if wrong else 2 * x * (g * x).sum())

    (rule,) = model(lambda p: Sized.apply(p["b"]).sin().sum()).rules()
    assert rule.error > 0.1 if wrong else rule.error < 1e-9


def two_outputs(torch, factor):
    class Both(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x, y, power=2, names=("a",)):
            largest, where = x.max(0)
            return x**power * y, where, x + largest, torch.sign(y)

        @staticmethod
        def setup_context(ctx, inputs, output):
            x, y, ctx.power, _ = inputs
            ctx.mark_non_differentiable(output[1], output[3])
            ctx.save_for_backward(x, y, output[1])
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx, first, where, second, sign):
            x, y, where = ctx.saved_tensors
            assert sign is None
            dx = dy = None
            if first is not None:
                dx, dy = factor * first * ctx.power * x ** (ctx.power - 1) * y, first * x**ctx.power
            if second is not None:
                own = second.clone()
                own[where] += second.sum()
                dx = own if dx is None else dx + own
            return dx, dy, None, None

    return Both


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("used", ["first", "both"])
def test_several_outputs_and_a_context_set_up_apart(torch, factor, used):
    apply = two_outputs(torch, factor).apply  # an alias

    def loss(p):
        first, where, second, sign = apply(p["b"].sin(), p["W"][0], 3)
        assert not where.dtype.is_floating_point
        assert not sign.requires_grad
        return (first * sign).sum() + (second.square().sum() if used == "both" else 0)

    if factor == 1:
        check_right(model(loss), [1])
    elif used == "first":
        check_wrong(model(loss), 2.0)
    else:
        (rule,) = model(loss).rules()
        assert rule.error > 1e-2
        assert_close(model(loss).replacing([rule]).value_and_grad(base())[1], differences(model(loss)), 1e-8)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("apart", [False, True])
def test_in_place(torch, factor, apart):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def backward(ctx, g):
            return 2 * factor * g

    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    Doubled.forward = staticmethod((lambda x: x.mul_(2)) if apart else forward)
    if apart:
        Doubled.setup_context = staticmethod(lambda ctx, inputs, output: ctx.mark_dirty(*inputs))

    def loss(p):
        h = p["b"].sin()
        result = Doubled.apply(h)
        assert result is h
        return (h.cos() * p["b"]).sum()

    if factor == 1:
        check_right(model(loss), [1])
    else:
        check_wrong(model(loss), 1.0)


def test_an_argument_that_is_returned_as_it_is(torch):
    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, g):
            return -g

    check_wrong(model(lambda p: Reversed.apply(p["b"].sin()).square().sum()), 2.0)


@pytest.mark.parametrize("forward", ["round", "step"])
def test_a_straight_through_estimator_is_not_the_derivative(torch, forward):
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round() if forward == "round" else (x > 0).double()

        @staticmethod
        def backward(ctx, g):
            return g

    m = model(lambda p: ((Straight.apply(p["W"]) + 1) * p["b"]).square().sum())
    check_wrong(m, math.inf)


@pytest.mark.parametrize("generator", ["torch", "numpy"])
def test_random_numbers_in_the_forward(torch, generator):
    random = np.random.default_rng(0)

    class Dropped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            drawn = torch.rand_like(x) if generator == "torch" else torch.from_numpy(random.random(x.shape))
            ctx.save_for_backward(drawn)
            return x * drawn

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]

    def loss(p):
        nonlocal random
        random = np.random.default_rng(0)
        torch.manual_seed(0)
        return sum(Dropped.apply(p["W"] @ p["b"]).sin().sum() for _ in range(5))

    m = model(loss)
    if generator == "torch":
        check_right(m, [5])
    else:  # what is drawn cannot be drawn again
        (rule,) = m.rules()
        assert (rule.executions, math.isnan(rule.error)) == (5, True)
        assert_close(m.replacing([rule]).value_and_grad(base())[1], differences(m), 1e-9)


@pytest.mark.parametrize("factor", [1, 1.5])
def test_a_forward_that_keeps_a_state(torch, factor):
    """Run again it would be another function: it is not compared, but replaced."""
    state = {}

    class Averaged(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, state):
            state["scale"] += 1
            ctx.scale = state["scale"]
            return x * ctx.scale

        @staticmethod
        def backward(ctx, g):
            return factor * g * ctx.scale, None

    def loss(p):
        state["scale"] = 1.0
        return sum(Averaged.apply(p["b"], state).sin().sum() for _ in range(3))

    m = model(loss)
    (rule,) = m.rules()
    assert math.isnan(rule.error)
    assert_close(m.replacing([rule]).value_and_grad(base())[1], differences(m), 1e-9)


@pytest.mark.parametrize("factor", [1, 1.5])
@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("how", ["clamp", "where", "numpy"])
def test_a_kink_at_the_very_point(torch, factor, slope, how):
    """Any slope between those of the two sides is right there."""

    class Relu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            if how == "numpy":
                return torch.from_numpy(np.maximum(x.detach().numpy(), 0))
            return x.clamp(min=0) if how == "clamp" else torch.where(x > 0, x, 0.0)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return factor * torch.where(x > 0, g, torch.where(x < 0, 0.0, slope * g))

    # half of the entries are at the kink, as after a ReLU
    m = model(lambda p: (Relu.apply(p["x"]) + 1).square().sum(), {"x": np.array([0.0, 0, 0, 1, 2, -1])})
    (rule,) = m.rules()
    assert rule.error == pytest.approx(factor - 1, abs=1e-9)


def test_a_class_written_in_the_loss_and_one_that_inherits(torch):
    right = tanh(1)

    class Child(right):
        @staticmethod
        def backward(ctx, g):
            return 1.5 * right.backward(ctx, g)

    def loss(p):
        h = tanh(1).apply(p["W"] @ p["b"])
        return (Child.apply(h + p["b"]) * right.apply(h)).sum()

    wrong = check_wrong(model(loss), 0.5)
    assert wrong.name == "Child"
    assert raw(Child)["forward"] is None


def test_a_rule_inside_a_primal_is_replaced_with_it(torch):
    inner = tanh(3)  # its own backward does not run

    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return inner.apply(x)

        @staticmethod
        def backward(ctx, g):
            return 2 * g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)

    assert check_wrong(model(lambda p: Outer.apply(p["b"]).square().sum()), 1.0).name == "Outer"


def test_second_derivatives(torch):
    layer = tanh(1.5)

    def loss(p):
        (slope,) = torch.autograd.grad(layer.apply(p["W"] @ p["b"]).sum(), p["b"], create_graph=True)
        return slope.square().sum()

    m = model(loss)
    (rule,) = m.rules()
    assert rule.error == pytest.approx(0.5)
    # the loss itself contains the wrong gradient; the replaced one is another loss, with a right gradient
    true = model(lambda p: loss_of_tanh(torch, p))
    value, gradients = m.replacing([rule]).value_and_grad(base())
    assert value == pytest.approx(float(true.loss(base())))
    assert_close(gradients, differences(true), 1e-8)


def loss_of_tanh(torch, p):
    y = torch.tanh(p["W"] @ p["b"])
    return ((1 - y * y) @ p["W"]).square().sum()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile
@pytest.mark.parametrize("how", ["checkpoint", "compile"])
def test_in_checkpoints_and_compiled_functions(torch, how):
    layers = [tanh(1), tanh(1.5)]
    layers[1].__qualname__ = "Wrong"

    def step(W, h):
        return layers[1].apply(W @ layers[0].apply(W @ h).sin())

    compiled = torch.compile(step, backend="eager")

    def loss(p):
        h = p["b"]
        for _ in range(3):
            h = (
                torch.utils.checkpoint.checkpoint(step, p["W"], h, use_reentrant=False)
                if how == "checkpoint"
                else (compiled(p["W"], h))
            )
        return h.square().sum()

    m = model(loss)
    rules = m.rules()
    assert [(rule.name, rule.executions) for rule in rules] == [("Tanh", 3), ("Wrong", 3)]
    assert [rule.error for rule in rules] == pytest.approx([0, 0.5], abs=1e-9)
    assert_close(m.replacing(rules[1:]).value_and_grad(base())[1], differences(m), 1e-8)


def test_an_operator_of_a_library(torch):
    schema = "(Tensor x, float factor=1.0) -> Tensor"
    with torch.library._scoped_library("gradaudit_test", "FRAGMENT"):

        @torch.library.custom_op("gradaudit_test::cube", mutates_args=(), schema=schema)
        def cube(x, factor=1.0):
            return factor * x**3

        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.factor = inputs[1]

        def backward(ctx, g):  # CUT
            return 2 * g * ctx.factor * ctx.saved_tensors[0] ** 2, None

        cube.register_autograd(backward, setup_context=setup_context)
        m = model(lambda p: cube(p["W"] @ p["b"], 2.0).sin().sum())
        wrong = check_wrong(m, 1 / 3)
    assert (wrong.kind, wrong.name, wrong.path) == ("register_autograd", "gradaudit_test::cube", __file__)
    assert [wrong.line] == marked(test_an_operator_of_a_library)


def test_half_precision_of_a_float32_model(torch):
    right = model(lambda p: tanh(1).apply(p["W"] @ p["b"]).sum(), {n: p.astype("f4") for n, p in base().items()})
    (rule,) = right.rules()
    assert rule.error < 1e-6
    wrong = model(lambda p: tanh(1.01).apply(p["W"] @ p["b"]).sum(), {n: p.astype("f4") for n, p in base().items()})
    (rule,) = wrong.rules()
    assert rule.error == pytest.approx(0.01, rel=1e-3)


def test_a_gradient_that_is_zero_but_for_rounding(torch):
    class Normalised(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, shift):
            y = (x + shift) - (x + shift).mean()
            return y / y.norm()

        @staticmethod
        def backward(ctx, g):
            return ctx.own(g)

    def forward(ctx, x, shift):
        y = (x + shift) - (x + shift).mean()
        ctx.save_for_backward(y)
        return y / y.norm()

    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        size = y.norm()
        dx = g / size - y * (g * y).sum() / size**3
        dx = dx - dx.mean()
        return dx, dx.sum()  # in the order of another program

    Normalised.forward, Normalised.backward = staticmethod(forward), staticmethod(backward)
    m = model(lambda p: (Normalised.apply(p["b"], p["W"][0, 0]) * p["W"][1]).sin().sum())
    (rule,) = m.rules()
    assert rule.error < 1e-9


def test_a_rule_of_an_installed_package(torch, tmp_path):
    path = tmp_path / "site-packages" / "installed_rule.py"
    path.parent.mkdir()
    path.write_text(
        "import torch\n\n\nclass Twice(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return 2 * x\n\n"
        "    @staticmethod\n    def backward(ctx, g):\n        return 2 * g\n"
    )
    spec = importlib.util.spec_from_file_location("installed_rule", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (rule,) = check_right(model(lambda p: module.Twice.apply(p["b"]).sin().sum()))
    assert (rule.library, rule.path, rule.line) == (True, str(path), 10)
    assert not check_right(model(lambda p: tanh(1).apply(p["b"]).sin().sum()))[0].library


@pytest.mark.parametrize("raising", [False, True])
def test_nothing_stays(torch, raising):
    layer, other = tanh(1.5), two_outputs(torch, 1)
    fails = False

    def loss(p):
        h = layer.apply(p["b"]) + other.apply(p["b"], p["b"])[0]
        if fails:
            raise ValueError
        return h.sum()

    before = [raw(layer), raw(other), "__init_subclass__" in torch.autograd.Function.__dict__]

    def unchanged():
        after = [raw(layer), raw(other), "__init_subclass__" in torch.autograd.Function.__dict__]
        return (
            all(
                x is y
                for a, b in zip(before[:2], after[:2], strict=True)
                for x, y in zip(a.values(), b.values(), strict=True)
            )
            and after[2] == before[2]
        )

    m = model(loss)
    rules = m.rules()
    assert unchanged()
    replaced = m.replacing(rules)
    assert unchanged()
    fails = raising
    random = torch.get_rng_state()
    for attempt in (m.rules, lambda: m.replacing(rules), lambda: replaced.value_and_grad(base())):
        if raising:
            with pytest.raises(ValueError):
                attempt()
        else:
            attempt()
        assert unchanged()
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_other_threads_are_left_alone(torch):
    layer = tanh(1.5)
    seen = []

    def gradient():
        x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        (g,) = torch.autograd.grad(layer.apply(x).sum(), x)
        seen.append(float(g[0]))

    def loss(p):
        h = layer.apply(p["b"])
        thread = threading.Thread(target=gradient)
        thread.start()
        thread.join()
        return h.sum()

    m = model(loss)
    (rule,) = m.rules()
    assert rule.executions == 1
    assert_close(m.replacing([rule]).value_and_grad(base())[1], differences(m), 1e-9)
    np.testing.assert_allclose(seen, 1.5 * (1 - math.tanh(1) ** 2), rtol=1e-12)


def test_two_audits_at_once(torch):
    layer = tanh(1.5)
    before = raw(layer)
    inside, finished = threading.Event(), threading.Event()
    errors = []

    def waiting(p):
        inside.set()
        finished.wait(10)
        return layer.apply(p["b"]).sum()

    def audit():
        errors.append(model(waiting).rules()[0].error)

    thread = threading.Thread(target=audit)
    thread.start()
    assert inside.wait(10)
    # the first one begins before, and ends after
    errors.append(model(lambda p: layer.apply(p["b"]).sum()).rules()[0].error)
    finished.set()
    thread.join()
    assert errors == pytest.approx([0.5, 0.5])
    assert all(x is y for x, y in zip(before.values(), raw(layer).values(), strict=True))


@pytest.mark.parametrize("written", [0, 2, 5])
def test_one_wrong_class_of_those_that_one_line_has_written(torch, written):
    layers = [tanh(1.5 if i == written else 1) for i in range(6)]

    def loss(p):
        h = p["b"]
        for layer in layers:
            h = layer.apply(p["W"] @ h)
        return (h**2).sum()

    assert check_wrong(model(loss), 0.5).executions == 6


def test_first_middle_and_last_execution_are_compared(torch):
    """Wrong from the 50th time on."""

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, i):
            ctx.i = i
            return 1.01 * x

        @staticmethod
        def backward(ctx, g):
            return (2.02 if ctx.i >= 50 else 1.01) * g, None

    def loss(p):
        h = p["b"]
        for i in range(101):
            h = Counted.apply(h, i)
        return h.sum()

    (rule,) = model(loss).rules()
    assert (rule.executions, rule.error) == (101, pytest.approx(1.0))


def test_cuts_under_a_replaced_rule_are_seen(torch):
    """What a forward detaches is nobody's business, until autograd differentiates it."""

    class Sized(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            size = x.detach().square().sum()
            return x * size

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0].square().sum()

    m = model(lambda p: Sized.apply(p["b"]).sin().sum())
    assert m.cuts() == ()
    replaced = m.replacing(m.rules())
    (cut,) = replaced.cuts()
    assert cut.kind == "detach"
    assert_close(replaced.without([cut]).value_and_grad(base())[1], differences(m), 1e-9)


def test_wrappers_that_cannot_be_installed_are_taken_back(torch, monkeypatch):
    from gradaudit.backends.torch import functions

    layers = [tanh(1.5), tanh(1.5)]
    before = [raw(layer) for layer in layers]
    original, calls = functions._wrappers, []

    def failing(rule):
        calls.append(rule)
        if rule.cls is layers[1]:
            raise MemoryError
        return original(rule)

    m = model(lambda p: layers[0].apply(p["b"]).sum())
    with monkeypatch.context() as patched:
        patched.setattr(functions, "_wrappers", failing)
        with pytest.raises(MemoryError):
            m.rules()
    assert layers[0] in [rule.cls for rule in calls]
    for layer, written in zip(layers, before, strict=True):
        assert all(x is y for x, y in zip(written.values(), raw(layer).values(), strict=True))
    assert m.rules()[0].error == pytest.approx(0.5)


@pytest.mark.parametrize("factor", [1, 1.5])
def test_complex_numbers(torch, factor):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z * z

        @staticmethod
        def backward(ctx, g):
            return factor * g * 2 * ctx.saved_tensors[0].conj()

    m = model(lambda p: (Square.apply(torch.complex(p["b"], p["W"][0])) + 1).abs().sum())
    if factor == 1:
        check_right(m)
    else:
        check_wrong(m, 0.5)


@pytest.mark.parametrize("factor", [1, 2])
def test_any_number_of_arguments_once_differentiable(torch, factor):
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, n, *xs):
            ctx.n, ctx.count = n, len(xs)
            return n * sum(xs)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):  # CUT
            return None, *(ctx.n * g * (factor if i == 1 else 1) for i in range(ctx.count))

    m = model(lambda p: Sum.apply(3, *p["W"].unbind(0)).sin().sum())
    if factor == 1:
        check_right(m)
    else:
        assert [check_wrong(m, 1.0, argument=1).line] == marked(test_any_number_of_arguments_once_differentiable)


def test_a_sparse_gradient(torch):
    class Rows(torch.autograd.Function):
        @staticmethod
        def forward(ctx, table, index):
            ctx.save_for_backward(index)
            return table[index]

        @staticmethod
        def backward(ctx, g):
            return torch.sparse_coo_tensor(ctx.saved_tensors[0][None], g, (3, 3), check_invariants=False), None

    check_right(model(lambda p: Rows.apply(p["W"] * 1, torch.tensor([0, 2, 2])).sin().sum()))


def test_a_forward_called_by_hand_is_not_a_rule(torch):
    right = two_outputs(torch, 3)

    class Child(right):
        @staticmethod
        def forward(x, y, power=2, names=("a",)):
            first, *others = right.forward(x, y, power, names)
            return 2 * first, *others

        @staticmethod
        def backward(ctx, first, where, second, sign):
            return right.backward(ctx, 2 * first, where, second, sign)

    def loss(p):
        return right.forward(p["b"], p["W"][0])[0].sum() + Child.apply(p["b"], p["W"][1])[0].sin().sum()

    assert check_wrong(model(loss), 2.0).name == "Child"
