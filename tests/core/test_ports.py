"""Ports of one model: the same function, or named where they differ."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Target, Verdict
from gradaudit.errors import OptionError
from gradaudit.mapping import corresponding
from tests.core.models import mlp, of, times

X = np.random.default_rng(0).standard_normal((7, 4))


def gated(order="ifgo", *, dtype="float64", transposed=False, bias=True):
    """One step of four gates over a window of inputs, with its gradient; parameters of its own."""
    rng = np.random.default_rng(1)
    shapes = {"cell.w": (4, 12), "cell.u": (3, 12), "cell.b": (12,), "out": (3, 3)}
    parameters = {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items() if bias or n != "cell.b"}

    def forward(p):
        z = X @ p["cell.w"] + np.tanh(X[:, :3]) @ p["cell.u"] + p.get("cell.b", 0)
        g = {gate: np.tanh(part) for gate, part in zip(order, np.split(z, 4, axis=1), strict=True)}
        h = (g["i"] * g["g"] + 0.5 * g["f"] + 0.1 * g["i"]) * g["o"] ** 2
        return g, h, h @ (p["out"].T if transposed else p["out"])

    def gradient(p):
        g, h, y = forward(p)
        dy = np.cos(y)
        dh = dy @ (p["out"] if transposed else p["out"].T)
        inner = {
            "i": (g["g"] + 0.1) * g["o"] ** 2, "g": g["i"] * g["o"] ** 2, "f": 0.5 * g["o"] ** 2,
            "o": 2 * (g["i"] * g["g"] + 0.5 * g["f"] + 0.1 * g["i"]) * g["o"],
        }  # fmt: skip
        dz = np.concatenate([dh * inner[gate] * (1 - g[gate] ** 2) for gate in order], axis=1)
        found = {"cell.w": X.T @ dz, "cell.u": np.tanh(X[:, :3]).T @ dz, "cell.b": dz.sum(0)}
        found["out"] = dy.T @ h if transposed else h.T @ dy
        return {n: found[n].astype(dtype) for n in p}

    return of(lambda p: np.sin(forward(p)[2]).sum().astype(dtype), gradient, **parameters)


def ports(*models, mapping=None, **options):
    names = ["first", "port", "third"]
    return gradaudit.audit_all(dict(zip(names, models, strict=False)), mapping=mapping or {}, **options)


RENAMED = {"cell.w": "cell.w", "out": "out.T"}


def test_the_first_models_parameters_are_handed_to_all():
    other = gated().at({n: 0 * p for n, p in gated().parameters().items()})
    report = ports(gated(), other)
    assert report.verdict is Verdict.AGREE, str(report)
    assert [p.verdict for p in report.ports] == [Verdict.AGREE] * 2
    assert report.ports[1].gradient_difference == 0
    assert float(other.parameters()["out"].sum()) == 0


def test_a_transposed_weight_is_no_difference_where_the_mapping_says_so():
    assert ports(gated(), gated(transposed=True), mapping={"port": {"out": "out.T"}}).verdict is Verdict.AGREE
    report = ports(gated(), gated(transposed=True))
    assert report.verdict is Verdict.DISAGREE
    assert [p.verdict for p in report.parts] == [Verdict.AGREE] * 2
    assert report.ports[1].confidence == "proven"
    assert report.ports[1].evidence.startswith("With out transposed, losses and gradients agree")


@pytest.mark.parametrize("order", ["ifog", "gifo"])
def test_gates_in_another_order_of_a_layer(order):
    report = ports(gated(), gated(order))
    port = report.ports[1]
    assert (port.verdict, port.confidence) == (Verdict.DISAGREE, "proven")
    read = ", ".join(str("ifgo".index(gate) + 1) for gate in order)
    assert f"With the blocks 1, 2, 3, 4 of cell.w, cell.u and cell.b read as {read}" in port.evidence
    assert "is another function than first: at the same parameters the losses are" in str(report)
    assert "Each gradient is the derivative of its own loss." in port.sentence


def test_a_mapping_that_is_wrong_in_one_tensor():
    swapped = {"port": {"cell.w": lambda p: p["cell.w"][:, [*range(6), *range(9, 12), *range(6, 9)]]}}
    assert (
        "With the blocks 1, 2, 3, 4 of cell.w read as 1, 2, 4, 3"
        in ports(gated(), gated(), mapping=swapped).ports[1].evidence
    )


@pytest.mark.parametrize(
    ("changed", "evidence"),
    [
        ((lambda f: 2 * f, lambda f: 2), "Its loss and its gradient are those times 2: a sum for a mean"),
        ((lambda f: f + 3, lambda f: 1), "The gradients agree: its loss has 3 more, a constant."),
    ],
)
def test_another_reduction_or_offset(changed, evidence):
    model, (value, factor) = gated(), changed
    both = model.value_and_grad
    port = of(
        lambda p: value(both(p)[0]),
        lambda p: {n: factor(both(p)[0]) * g for n, g in both(p)[1].items()},
        **{n: 1 + p for n, p in model.parameters().items()},
    )
    found = ports(model, port).ports[1]
    assert (found.verdict, found.confidence) == (Verdict.DISAGREE, "proven")
    assert found.evidence.startswith(evidence)


def reading(change):
    """A model that reads its parameters in another arrangement than `layers`."""
    model = layers()
    first = model.parameters()
    of_first = corresponding(lambda p: dict(p) | change(p), first, first, name="port")

    def gradient(p):
        _, g = model.value_and_grad(of_first.apply(p))
        return of_first.adjoint(g)

    return of(lambda p: model.loss(of_first.apply(p)), gradient, **{n: 0 * p for n, p in first.items()})


def layers():
    rng = np.random.default_rng(2)
    shapes = {"q": (5, 4), "k": (5, 4), "conv": (3, 3, 2, 4), "flat": (6 * 4, 3), "square": (7, 7)}
    data = {n: rng.standard_normal(s) for n, s in shapes.items()}
    at = {n: rng.standard_normal(s) for n, s in shapes.items()}
    return of(
        lambda p: sum((np.sin(p[n] + a) * a).sum() for n, a in data.items()),
        lambda p: {n: np.cos(p[n] + a) * a for n, a in data.items()},
        **at,
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: {"q": p["k"], "k": p["q"]}, "q and k in each other's place"),
        (lambda p: {"square": p["square"].T}, "square transposed"),
        (lambda p: {"conv": p["conv"][::-1, ::-1]}, "conv reversed along axes 0, 1"),
        (lambda p: {"conv": p["conv"][:, ::-1]}, "conv reversed along axis 1"),
        (lambda p: {"conv": -p["conv"]}, "conv with the opposite sign"),
        (
            lambda p: {"flat": p["flat"].reshape(4, 6, 3).swapaxes(0, 1).reshape(24, 3)},
            "axis 0 of flat read as 4 x 6 instead of 6 x 4",
        ),
        (
            lambda p: {"flat": p["flat"].reshape(3, 8, 3)[[2, 0, 1]].reshape(24, 3)},
            "the blocks 1, 2, 3 of flat read as 2, 3, 1",
        ),
    ],
)
def test_what_ports_get_wrong(change, words):
    assert ports(layers(), reading(lambda p: {})).verdict is Verdict.AGREE
    port = ports(layers(), reading(change)).ports[1]
    assert (port.verdict, port.confidence) == (Verdict.DISAGREE, "proven")
    assert port.evidence.startswith(f"With {words}, losses and gradients agree"), port.evidence


def test_a_difference_that_no_arrangement_explains():
    model = gated()
    port = of(
        lambda p: model.loss(p) ** 2 + p["out"].sum(),
        lambda p: {n: 2 * model.loss(p) * g + (n == "out") for n, g in model.value_and_grad(p)[1].items()},
        **model.parameters(),
    )
    found = ports(model, port).ports[1]
    assert (found.verdict, found.confidence) == (Verdict.DISAGREE, "unexplained")
    assert found.evidence == "None of 142 other arrangements of its parameters makes them agree."
    few = ports(model, port, max_evaluations=100).ports[1]
    assert few.evidence.startswith("None of 100 other")
    assert few.evaluations == 100


def test_equal_losses_with_other_gradients_are_another_function():
    one = of(lambda p: (p["x"] ** 2).sum(), lambda p: {"x": 2 * p["x"]}, x=[1.0, 1.0])
    other = of(lambda p: 2 * p["x"].prod(), lambda p: {"x": 2 * p["x"][::-1]}, x=[1.0, 1.0])
    steep = of(
        lambda p: 2 * p["x"][0] ** 2 * p["x"][1],
        lambda p: {"x": np.array([4 * p["x"].prod(), 2 * p["x"][0] ** 2])},
        x=[1.0, 1.0],
    )
    assert ports(one, other).verdict is Verdict.AGREE  # at this point they do
    port = ports(one, steep).ports[1]
    assert port.verdict is Verdict.DISAGREE
    assert "the losses agree, but gradients differ (x by 0.71)" in port.sentence


def test_a_wrong_gradient_is_no_wrong_port():
    report = ports(mlp(), mlp(times(2.0)))
    assert [p.verdict for p in report.parts] == [Verdict.AGREE, Verdict.DISAGREE]
    assert report.ports[1].verdict is Verdict.INCONCLUSIVE
    assert "The losses agree; the gradients differ, and that of port is wrong." in str(report)
    assert report.verdict is Verdict.DISAGREE


def apart(order):
    """The same with a tensor for each gate."""
    model, gates = gated(order), "ifgo"

    def joined(p):
        found = {f"cell.{n}": np.concatenate([p[f"cell.{n}{g}"] for g in gates], axis=-1) for n in "wub"}
        return found | {"out": p["out"]}

    def gradient(p):
        _, g = model.value_and_grad(joined(p))
        split = {
            f"cell.{n}{k}": part for n in "wub" for k, part in zip(gates, np.split(g[f"cell.{n}"], 4, -1), strict=True)
        }
        return split | {"out": g["out"]}

    shapes = {"w": (4, 3), "u": (3, 3), "b": (3,)}
    parameters = {f"cell.{n}{k}": np.ones(shape) for n, shape in shapes.items() for k in gates}
    return of(lambda p: model.loss(joined(p)), gradient, **parameters, out=np.ones((3, 3)))


def test_gates_that_have_tensors_of_their_own():
    mapping = {f"cell.{n}{k}": lambda p, n=n, j=j: np.split(p[f"cell.{n}"], 4, -1)[j]
               for n in "wub" for j, k in enumerate("ifgo")}  # fmt: skip
    assert ports(gated(), apart("ifgo"), mapping={"port": mapping}).verdict is Verdict.AGREE
    port = ports(gated(), apart("ifog"), mapping={"port": mapping}).ports[1]
    assert (port.verdict, port.confidence) == (Verdict.DISAGREE, "proven")
    assert port.evidence.startswith(
        "With what is named g and o exchanged in cell.bg, cell.bo, cell.ug, cell.uo, cell.wg and"
    )


def test_random_losses_are_not_compared():
    def noisy():
        return of(
            lambda p: (p["x"] ** 2 * np.random.random(3)).sum(),
            lambda p: {"x": 2 * p["x"] * np.random.random(3)},
            x=[1.0, 2.0, 3.0],
        )

    square = of(lambda p: (p["x"] ** 2).sum(), lambda p: {"x": 2 * p["x"]}, x=[1.0, 2.0, 3.0])
    port = ports(square, noisy()).ports[1]
    assert port.verdict is Verdict.INCONCLUSIVE
    assert port.sentence.startswith("port draws random numbers (GA801)")


def test_another_slope_at_a_kink_is_right_too():
    def rectified(slope):
        return of(
            lambda p: np.maximum(p["x"], 0).sum() + (p["x"] ** 2).sum(),
            lambda p: {"x": np.where(p["x"] == 0, slope, p["x"] > 0) + 2 * p["x"]},
            x=[0.0, 1.0, -1.0],
        )

    port = ports(rectified(0.0), rectified(0.5)).ports[1]
    assert port.verdict is Verdict.INCONCLUSIVE
    assert "has a kink here (GA601), where another one is right, too" in port.sentence


def test_chaos_is_no_difference():
    """Float32 states after 60 steps of a chaotic map, by two programs for the same step."""

    def iterated(step, slope):
        def both(p):
            x, g = p["x"], np.ones_like(p["x"])
            for _ in range(25):
                g, x = slope(x) * g, step(x)
            return x.sum(), g

        at = np.linspace(0.11, 0.37, 4).astype("float32")
        return of(lambda p: both(p)[0], lambda p: {"x": both(p)[1]}, x=at)

    one = iterated(lambda x: np.float32(3.9) * x * (1 - x), lambda x: np.float32(3.9) * (1 - 2 * x))
    other = iterated(lambda x: np.float32(3.9) * (x - x * x), lambda x: np.float32(3.9) - np.float32(7.8) * x)
    port = ports(one, other).ports[1]
    assert port.loss_difference > 3e-4
    assert port.verdict is Verdict.INCONCLUSIVE
    assert port.sentence.startswith("Nothing differs, but a difference below")


def test_the_first_may_be_the_one_that_differs():
    report = ports(gated("ifog"), gated(), gated())
    assert [p.verdict for p in report.ports] == [Verdict.DISAGREE] * 3
    assert report.ports[0].sentence == "The others agree with one another: first is the one that differs."
    lone = ports(gated(), gated("ifog"), gated())
    assert [p.verdict for p in lone.ports] == [Verdict.AGREE, Verdict.DISAGREE, Verdict.AGREE]


def test_single_precision_beside_double_is_no_difference():
    report = ports(gated(), gated(dtype="float32"))
    assert report.verdict is Verdict.AGREE, str(report)
    assert 0 < report.ports[1].loss_difference < 1e-5
    strict = ports(gated(), gated(dtype="float32"), significant=1e-4)
    assert strict.ports[1].verdict is Verdict.INCONCLUSIVE


def test_what_the_port_has_no_place_for_must_be_zero():
    with pytest.raises(
        OptionError, match=r"12 of 12 entries of 'cell.b', which are not zero, are in no parameter of 'port'"
    ):
        ports(gated(), gated(bias=False))
    zero = gated().at(dict(gated().parameters()) | {"cell.b": np.zeros(12)})
    assert ports(zero, gated(bias=False)).verdict is Verdict.AGREE


def test_what_a_comparison_costs():
    report = ports(gated(), gated())
    assert [(p.evaluations, p.gradients) for p in report.ports] == [(0, 4)] * 2
    assert report.evaluations == sum(p.evaluations for p in report.parts)
    first = ports(gated(), gated("ifog")).ports[1]  # the first order that is tried fits
    assert (first.evaluations, first.gradients) == (1, 5)
    assert ports(gated(), gated(dtype="float32"), max_evaluations=5).ports[1].verdict is Verdict.AGREE


def test_three_methods_are_enough():
    class Bare:
        def __init__(self, model):
            self.parameters, self.loss, self.value_and_grad = model.parameters, model.loss, model.value_and_grad

    shifted = gated().at({n: p + 1 for n, p in gated().parameters().items()})
    assert ports(gated(), Bare(shifted)).verdict is Verdict.AGREE


def test_a_port_that_there_is_not():
    with pytest.raises(OptionError, match="there is no port 'jax' of 'first'"):
        ports(gated(), gated(), mapping={"jax": {}})


def test_targets_are_what_audit_takes():
    square = Target(lambda x: (x**2).sum(), [1.0, 2.0], gradient=lambda x: 2 * x)
    report = gradaudit.audit_all({"one": square, "other": square})
    assert report.verdict is Verdict.AGREE
    assert report.ports[1].verdict is None
    assert "the same function" not in str(report)
    again = gradaudit.audit_all({"one": square, "other": square}, mapping={})
    assert "the same function" in str(again)
    assert str(gradaudit.AuditReport.from_json(again.to_json())) == str(again)


def test_nothing_of_the_generators_changes():
    before = np.random.get_state()[1].copy()
    ports(gated(), gated("ifog"))
    assert np.array_equal(before, np.random.get_state()[1])
