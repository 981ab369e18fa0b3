"""Where PyTorch programs cut their gradient: the line, the gradient without the cut, the loss with it held."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from gradaudit.protocols import SupportsCuts
from tests import conftest
from tests.backends.cutting import base, marked

#: Collected where torch is tested, unknown elsewhere: nothing is skipped silently.
__test__ = "torch" in conftest.tested()

N_STEPS = 50


@pytest.fixture
def torch():
    import torch

    return torch


def model(function, parameters):
    return registry.get("torch").function_model(function, parameters)


def differences(m, h=1e-4):
    """The gradient by central differences of fourth order."""
    point = m.parameters()
    gradients = {n: np.zeros_like(p) for n, p in point.items()}
    for name, gradient in gradients.items():
        for index in np.ndindex(gradient.shape):
            losses = []
            for step in (-2, -1, 1, 2):
                moved = {n: p.copy() for n, p in point.items()}
                moved[name][index] += step * h
                losses.append(float(m.loss(moved)))
            gradient[index] = (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / (12 * h)
    return gradients


def assert_close(actual, expected, tolerance):
    for name, value in expected.items():
        own = np.zeros_like(value) if actual[name] is None else actual[name]
        np.testing.assert_allclose(own, value, rtol=tolerance, atol=tolerance)


def assert_held(m, cuts):
    held = m.holding(cuts)
    np.testing.assert_allclose(held.loss(held.parameters()), m.loss(m.parameters()), rtol=1e-12)
    analytic = m.value_and_grad(m.parameters())[1]
    assert_close(differences(held), {n: np.zeros(3) if g is None else g for n, g in analytic.items()}, 1e-6)
    assert_close(held.value_and_grad(held.parameters())[1], analytic, 1e-12)


def assert_mended(m, cuts):
    """Without the cuts the gradient is that of the loss, and not before."""
    true = differences(m)
    loss, gradients = m.without(cuts).value_and_grad(m.parameters())
    assert loss == m.loss(m.parameters())
    assert_close(gradients, true, 1e-9)
    with pytest.raises(AssertionError):
        assert_close(m.value_and_grad(m.parameters())[1], true, 1e-6)


def check(function, kind, executions=1, of=None, name=None):
    """One cut, the one that is marked."""
    m = model(function, base())
    assert isinstance(m, SupportsCuts)
    (cut,) = m.cuts()
    assert (cut.kind, cut.path, [cut.line]) == (kind, __file__, marked(of or function))
    assert (cut.executions, cut.library, cut.removable) == (executions, False, True)
    assert cut.function == (name or function.__name__)
    assert_mended(m, [cut])
    assert_held(m, [cut])
    return cut


def test_detach_in_a_loop(torch):
    def loss(p):
        h = torch.zeros(3, dtype=torch.float64)
        for _ in range(N_STEPS):
            h = torch.tanh(p["W"] @ h.detach() + p["b"])  # CUT
        return (h**2).sum()

    # the first time h is a constant
    check(loss, "detach", executions=N_STEPS - 1)


@pytest.mark.parametrize("how", ["no_grad", "set_grad_enabled", "enabled inside"])
def test_a_region_without_gradient(torch, how):
    def plain(p):
        h = p["W"] @ p["b"]
        with torch.no_grad():  # CUT
            norm = h.norm()
            norm = norm + 1
        return torch.sin(h / norm).sum()

    def setting(p):
        h = p["W"] @ p["b"]
        with torch.set_grad_enabled(False):  # CUT
            norm = h.norm()
        return torch.sin(h / norm).sum()

    def nested(p):
        h = p["W"] @ p["b"]
        with torch.no_grad():  # CUT
            with torch.enable_grad():
                square = h.square()
            norm = square.sum().sqrt()
        return torch.sin(h / norm).sum()

    function = {"no_grad": plain, "set_grad_enabled": setting, "enabled inside": nested}[how]
    check(function, "set_grad_enabled" if function is setting else "no_grad")


def test_a_region_that_writes_in_place(torch):
    def loss(p):
        kept = torch.zeros(2, 3, dtype=torch.float64)
        h = p["W"] @ p["b"]
        with torch.no_grad():  # CUT
            kept[0] = h
            kept[1].add_(h.square())
            kept.mul_(0.5)
        return (torch.sin(h) * kept).sum()

    check(loss, "no_grad")


def test_data(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        scale = h.data  # CUT
        return (h * scale.cos()).sum()

    check(loss, ".data")


@pytest.mark.filterwarnings("ignore:To copy construct:UserWarning", "ignore:Converting a tensor:UserWarning")
def test_rewrapped(torch):
    def one(p):
        h = torch.tanh(p["W"] @ p["b"])
        return (h * torch.tensor(h)).sum()  # CUT

    def several(p):
        h = torch.tanh(p["W"] @ p["b"])
        return (h[:2] * torch.as_tensor([h.sum(), h.prod()], dtype=torch.float64)).sum()  # CUT

    check(one, "rewrap")
    check(several, "rewrap")


def test_as_tensor_of_a_tensor_is_no_cut(torch):
    m = model(lambda p: torch.as_tensor(p["W"] @ p["b"]).sin().sum(), base())
    assert m.cuts() == ()


@pytest.mark.parametrize("kind", ["item", "float", "tolist"])
def test_a_round_trip_is_held_and_not_removed(torch, kind):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        if kind == "float":
            with_warning = h.sum().detach_()
            return (h * float(with_warning)).sum()
        number = h.sum().item() if kind == "item" else h.tolist()[0]
        return (h * number).sum()

    m = model(loss, base())
    cut = m.cuts()[-1]
    assert (cut.kind, cut.removable) == (kind, False)
    assert m.without([cut]) is None
    assert_held(m, [cut])


def test_numpy_behind_a_detach(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        outside = np.sin(h.detach().numpy())  # CUT
        return (h * torch.from_numpy(outside)).sum()

    m = model(loss, base())
    detach, numpy = m.cuts()
    assert [detach.line, numpy.line] == marked(loss) * 2
    assert (detach.kind, numpy.kind, numpy.removable) == ("detach", "numpy", False)
    assert_held(m, [detach])
    assert_held(m, [numpy])
    # the round trip still cuts
    assert_close(m.without([detach]).value_and_grad(m.parameters())[1], m.value_and_grad(m.parameters())[1], 1e-12)


def test_detach_in_place(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        twice = h * 2
        h.detach_()  # CUT
        return (h * twice).sum()

    check(loss, "detach_")


def test_inside_a_module_three_levels_deep(torch):
    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3, dtype=torch.float64)

        def forward(self, x):
            y = torch.tanh(self.linear(x))
            return y * y.sum().detach()  # CUT

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Cell()

        def forward(self, x):
            return self.cell(x)

    net = torch.nn.Sequential(Block(), torch.nn.Linear(3, 1, dtype=torch.float64))
    x = torch.arange(3.0, dtype=torch.float64)

    def loss(p):
        return torch.func.functional_call(net, p, (x,)).sum()

    m = model(loss, dict(net.named_parameters()))
    (cut,) = m.cuts()
    assert (cut.kind, [cut.line], cut.function) == ("detach", marked(Cell.forward), "Cell.forward")
    assert_mended(m, [cut])
    assert_held(m, [cut])


def test_constants_are_not_listed(torch):
    data = torch.arange(3.0, dtype=torch.float64)

    def loss(p):
        x = data.detach() * data.sum().item()
        with torch.no_grad():
            x = x / x.norm()
        h = p["W"] @ x + torch.zeros_like(p["b"]).detach() + p["b"]
        return (h * h.detach()).sum()  # CUT

    check(loss, "detach")


def test_what_is_derived_from_a_cut_value_depends_on_parameters_too(torch):
    def loss(p):
        h = p["W"] @ p["b"]
        kept = torch.zeros(3, dtype=torch.float64)
        kept[1:] = h.detach()[1:] * 2
        return (h * kept.sum().item()).sum()

    assert [cut.kind for cut in model(loss, base()).cuts()] == ["detach", "item"]


def test_two_on_one_line_are_two(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        return (h * h.detach() + h.sin() * h.cos().detach()).sum()  # CUT

    m = model(loss, base())
    first, second = m.cuts()
    assert [first.line, second.line] == marked(loss) * 2
    assert first != second
    assert first.column != second.column
    assert_mended(m, [first, second])
    for one in ([first], [second]):
        with pytest.raises(AssertionError):
            assert_mended(m, one)
    assert_held(m, [first, second])


def test_a_correct_program_lists_nothing(torch):
    def loss(p):
        h = torch.zeros(3, dtype=torch.float64)
        for _ in range(5):
            h = torch.tanh(p["W"] @ h + p["b"])
        return torch.nn.functional.mse_loss(h, torch.ones_like(h))

    m = model(loss, base())
    assert m.cuts() == ()
    assert_held(m, [])


def test_a_decorated_function(torch):
    @torch.no_grad()
    def norm(x):
        return x.norm()

    def loss(p):
        h = p["W"] @ p["b"]
        return torch.sin(h / norm(h)).sum()  # CUT

    check(loss, "no_grad", name="norm")


@pytest.mark.parametrize("kind", ["no_grad", "inference_mode", "set_grad_enabled"])
def test_a_decorated_loss(torch, kind):
    """No line of the user's calls it: the function is named."""
    decorator = torch.set_grad_enabled(False) if kind == "set_grad_enabled" else getattr(torch, kind)()

    @decorator
    def loss(p):  # CUT
        return torch.sin(p["W"] @ p["b"]).sum()

    m = model(loss, base())
    (cut,) = m.cuts()
    assert (cut.kind, cut.path, [cut.line], cut.library) == (kind, __file__, marked(loss), False)
    assert cut.name == "loss"
    assert_mended(m, [cut])
    report = gradaudit.audit(m)
    assert [(f.code, f.confidence) for f in report.findings] == [("GA101", "proven")]
    assert f"test_torch_cuts.py:{cut.line}" in report.findings[0].title


def test_a_decorated_loss_of_a_module(torch):
    torch.manual_seed(0)
    net, x = torch.nn.Linear(6, 1), torch.randn(24, 6)

    @torch.no_grad()
    def loss(net):  # CUT
        return net(x).square().mean()

    report = gradaudit.audit(net, loss=loss)
    assert [f.title for f in report.findings] == [f"cut at test_torch_cuts.py:{marked(loss)[0]}"]
    assert gradaudit.audit(net, loss=loss.__wrapped__).verdict is Verdict.AGREE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_last_call_of_a_loss_is_item(torch, dtype):
    """It hands over a number without a dtype: of a float32 tensor it is one of float32."""
    torch.manual_seed(0)
    net, x = torch.nn.Linear(6, 1).to(getattr(torch, dtype)), torch.randn(24, 6, dtype=getattr(torch, dtype))

    def loss(net):
        return net(x).square().mean().item()  # CUT

    report = gradaudit.audit(net, loss=loss)
    assert [f.title for f in report.findings] == [f"cut at test_torch_cuts.py:{marked(loss)[0]}"]
    assert report.dtype == dtype


def test_the_evidence_of_held_values_is_a_sentence(torch):
    """Of one cut or of several; an error has a size only where something is left that moves the loss."""
    p = {n: a.astype("float32") for n, a in base().items()}

    def gone(p):
        return torch.tanh(p["W"] @ p["b"]).sum().detach().numpy()

    def left(p):
        return p["b"].sin().sum() + (p["W"].exp().sum().item() + 1)

    several = gradaudit.audit(model(gone, p)).findings[0].evidence
    assert several == "With the values that they cut off held at the base point, analytic and numeric are both zero."
    one = gradaudit.audit(model(left, p)).findings[0].evidence
    assert one.startswith(
        "With the values that it cuts off held at the base point, analytic and numeric agree: an error"
    )
    assert "above 0 " not in one


def test_a_number_that_float32_does_not_hold_stays_one_of_float64(torch):
    p = {n: a.astype("float32") for n, a in base().items()}
    assert model(lambda p: 0.1 + p["b"].sum().item(), p).loss(p).dtype == np.float64
    assert model(lambda p: p["b"].sum().item(), p).loss(p).dtype == np.float32
    assert model(lambda p: p["b"].sum().item(), base()).loss(base()).dtype == np.float64
    assert model(lambda p: p["b"].sum().double(), p).loss(p).dtype == np.float64


def test_a_gradient_inside_the_loss_without_a_graph_of_its_own(torch):
    x = torch.ones(3, dtype=torch.float64)

    def loss(p):
        at = x.clone().requires_grad_()
        u = torch.tanh(p["W"] @ at + p["b"]).sum()
        (slope,) = torch.autograd.grad(u, at, retain_graph=True)  # CUT
        return u + (slope**2).sum()

    def right(p):
        at = x.clone().requires_grad_()
        u = torch.tanh(p["W"] @ at + p["b"]).sum()
        (slope,) = torch.autograd.grad(u, at, create_graph=True)
        return u + (slope**2).sum()

    check(loss, "autograd.grad")
    assert model(right, base()).cuts() == ()


def test_data_is_set(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        kept = torch.zeros(3, dtype=torch.float64)
        kept.data = h  # CUT
        return (h * kept).sum()

    m = model(loss, base())
    (cut,) = m.cuts()
    assert (cut.kind, [cut.line], cut.removable) == (".data =", marked(loss), False)
    assert_held(m, [cut])


def test_holding_is_refused_where_a_cut_value_is_written_through(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        h.data.mul_(2)  # CUT
        return (h * h).sum()

    m = model(loss, base())
    (cut,) = m.cuts()
    assert [cut.line] == marked(loss)
    assert m.holding([cut]) is None


def test_weights_that_are_not_audited_are_constants(torch):
    net = torch.nn.Linear(3, 3, dtype=torch.float64)
    x = torch.ones(3, dtype=torch.float64)

    def loss(p):
        torch.nn.Linear(2, 2)  # initialised without gradient
        y = net(x).detach()
        h = torch.tanh(p["W"] @ y + p["b"])
        return (h * h.detach()).sum()  # CUT

    check(loss, "detach")


def test_a_compiled_function(torch):
    def inner(W, b):
        h = torch.tanh(W @ b)
        return (h * h.detach()).sum()  # CUT

    compiled = torch.compile(inner, backend="eager")
    check(lambda p: compiled(p["W"], p["b"]), "detach", of=inner, name="inner")


def test_inside_vmap_cuts_are_removed_and_not_held(torch):
    def loss(p):
        def one(x):
            h = torch.tanh(p["W"] @ x)
            return (h * h.detach()).sum()  # CUT

        return torch.func.vmap(one)(p["W"] + p["b"]).sum()

    m = model(loss, base())
    (cut,) = m.cuts()
    assert (cut.kind, [cut.line], cut.function) == ("detach", marked(loss), "one")
    assert_mended(m, [cut])
    assert m.holding([cut]) is None


def test_transforms_that_are_right_list_nothing(torch):
    def loss(p):
        def u(x):
            return torch.tanh(p["W"][0] * x + p["b"]).sum()

        points = torch.linspace(0, 1, 5, dtype=torch.float64)
        return (torch.func.vmap(torch.func.grad(torch.func.grad(u)))(points) ** 2).sum()

    assert model(loss, base()).cuts() == ()


def test_a_cut_in_an_installed_package_is_marked(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        code = compile("def scaled(h):\n    return h * h.detach()", "/usr/lib/site-packages/other.py", "exec")
        names = {}
        exec(code, names)
        return names["scaled"](h).sum()

    (cut,) = model(loss, base()).cuts()
    assert (cut.path, cut.line, cut.function, cut.library) == ("/usr/lib/site-packages/other.py", 2, "scaled", True)


def test_other_threads_are_not_watched(torch):
    from threading import Thread

    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        thread = Thread(target=lambda: h.detach().sum().item())
        thread.start()
        thread.join()
        return h.sum()

    assert model(loss, base()).cuts() == ()


def test_regions_and_cuts_in_one_another(torch):
    def loss(p):
        h = p["W"] @ p["b"]
        with torch.no_grad():
            norm = h.detach().norm()
        return torch.sin(h / norm).sum()

    m = model(loss, base())
    detach, region = m.cuts()
    assert (detach.kind, region.kind) == ("detach", "no_grad")
    assert_mended(m, [detach, region])
    for one in ([detach], [region]):
        assert_held(m, one)
        with pytest.raises(AssertionError):
            assert_mended(m, one)


def test_nothing_is_removed_where_pytorch_refuses(torch):
    def loss(p):
        w = p["W"].clone()
        with torch.no_grad():
            p["W"].mul_(0.5)
        return (w @ p["W"] @ p["b"]).sum()

    m = model(loss, base())
    (cut,) = m.cuts()
    assert m.without([cut]) is None


def test_a_custom_function_is_no_cut(torch):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.detach() ** 2

        @staticmethod
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

    assert model(lambda p: Square.apply(p["W"] @ p["b"]).sum(), base()).cuts() == ()


def test_float32_has_a_held_twin(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        return (h * h.detach()).sum()

    m = model(loss, base("float32"))
    held = m.holding(m.cuts())
    twin = held.twin()
    assert held.loss(held.parameters()) == m.loss(m.parameters())
    assert twin.parameters()["W"].dtype == np.float64
    assert_close(differences(twin), twin.value_and_grad(twin.parameters())[1], 1e-9)
    assert twin.twin() is None


def test_random_numbers_are_the_same_when_held_and_go_on_as_before(torch):
    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        return (h * h.detach() * torch.rand(3)).sum()

    m = model(loss, base())
    before = torch.get_rng_state()
    cuts = m.cuts()
    assert m.without(cuts) is not None
    assert m.holding(cuts) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_all_is_as_before_after_an_exception(torch):
    from torch.overrides import _get_current_function_mode_stack

    fails = False

    def loss(p):
        h = torch.tanh(p["W"] @ p["b"])
        with torch.no_grad():
            norm = h.norm()
            if fails:
                torch.rand(3)
                torch.set_grad_enabled(False)
                raise ValueError
        return (h * norm).sum()

    m = model(loss, base())
    cuts = m.cuts()
    without, held = m.without(cuts), m.holding(cuts)
    fails = True
    before = torch.get_rng_state()
    for attempt in (m.cuts, lambda: m.without(cuts), lambda: m.holding(cuts)):
        with pytest.raises(ValueError):
            attempt()
        assert torch.equal(torch.get_rng_state(), before)
    for attempt in (without, held):
        with pytest.raises(ValueError):
            attempt.value_and_grad(attempt.parameters())
        with pytest.raises(ValueError):
            attempt.loss(attempt.parameters())
    assert torch.is_grad_enabled()
    assert not _get_current_function_mode_stack()


def audited(function, parameters):
    """The codes of an audit, and the sentence of its GA101, if any."""
    report = gradaudit.audit(model(function, parameters))
    return [finding.code for finding in report.findings], next(
        (finding.sentence for finding in report.findings if finding.code == "GA101"), ""
    )


def test_the_line_is_named_although_random_numbers_are_held(torch):
    def loss(p):
        h = torch.nn.functional.dropout(p["W"].sin(), 0.5)
        gate = p["b"].detach()  # CUT
        return (h * gate * p["b"]).sum()

    codes, sentence = audited(loss, base())
    assert codes == ["GA801", "GA101"]
    assert f"test_torch_cuts.py:{marked(loss)[0]} in loss" in sentence


@pytest.mark.parametrize("second_order", [True, False])
def test_a_first_order_meta_gradient_is_a_cut(torch, second_order):
    """Modelled on dragen1860/MAML-Pytorch#32."""

    def outer(p):
        inner = (p["W"].sin() ** 2).sum()
        (slope,) = torch.autograd.grad(inner, p["W"], create_graph=second_order)  # CUT
        return (p["W"] - 0.1 * slope).cos().sum()

    codes, sentence = audited(outer, {"W": base()["W"]})
    assert codes == ([] if second_order else ["GA101"])
    assert second_order or f"test_torch_cuts.py:{marked(outer)[0]} in outer" in sentence


def test_a_detached_adjacency_leaves_its_projections_without_gradient(torch):
    """Modelled on queenie88/A-GCN#4: GA101 names the line where GA201 would name the tensors only."""
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((6, 3)))

    def loss(p):
        adjacency = torch.softmax((x @ p["q"]) @ (x @ p["k"]).T, 1).detach()  # CUT
        return ((adjacency @ x @ p["w"]) ** 2).mean()

    rng = np.random.default_rng(3)
    codes, sentence = audited(loss, {name: rng.standard_normal((3, 3)) for name in "qkw"})
    assert codes == ["GA101"]
    assert f"test_torch_cuts.py:{marked(loss)[0]} in loss" in sentence
    assert "gradient of q, k" in sentence


def test_statistics_without_gradient(torch):
    """A normalisation that treats its own mean and variance as constants."""
    x = torch.from_numpy(np.random.default_rng(4).standard_normal((20, 3)))

    def loss(p, *, cut=True):
        h = x @ p["W"]
        with torch.set_grad_enabled(not cut):  # CUT
            mean, var = h.mean(0), h.var(0)
        return (((h - mean) / (var + 1e-5).sqrt() - 1) ** 3).mean()

    codes, sentence = audited(loss, {"W": base()["W"]})
    assert codes == ["GA101"]
    assert f"test_torch_cuts.py:{marked(loss)[0]} in loss" in sentence
    assert audited(lambda p: loss(p, cut=False), {"W": base()["W"]})[0] == []


@pytest.mark.parametrize("write", ["halved", "clamped", "clamped without grad", "unchanged"])
def test_a_write_in_place_is_told_beside_the_pattern_that_it_makes(torch, write):
    """It cannot be removed: PyTorch refuses to differentiate what was changed in place."""
    torch.manual_seed(0)
    first, last, x = torch.nn.Linear(6, 8), torch.nn.Linear(8, 1), torch.randn(24, 6)

    def loss(net):
        if write == "clamped":
            net[0].weight.data.clamp_(-0.2, 0.2)  # CUT
        if write == "clamped without grad":
            with torch.no_grad():  # CUT
                net[0].weight.clamp_(-0.2, 0.2)
        h = torch.relu(net[0](x))
        if write in {"halved", "unchanged"}:
            h.data.div_(2.0 if write == "halved" else 1.0)  # CUT
        return net[1](h).square().mean()

    report = gradaudit.audit(torch.nn.Sequential(first, last), loss=loss)
    if write == "unchanged":
        assert (report.verdict, report.findings) == (Verdict.AGREE, ())
        return
    assert report.verdict is Verdict.DISAGREE
    lines = dict(zip(["clamped", "clamped without grad", "halved"], marked(loss), strict=True))
    assert f"since nothing runs without it: {'no_grad' if 'grad' in write else '.data'} at test_torch_cuts.py:" in (
        sentence := report.findings[0].sentence
    )
    assert f"test_torch_cuts.py:{lines[write]} in loss." in sentence
