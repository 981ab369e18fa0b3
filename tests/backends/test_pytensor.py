"""PyTensor alone: its own truncated scan, symbolic losses of shared variables, what it leaves as it was."""

from __future__ import annotations

import numpy as np
import pytensor
import pytest
from pytensor import tensor as pt
from pytensor.scan import until
from pytensor.scan.op import Scan

import gradaudit
from gradaudit import Verdict
from gradaudit.backends import registry
from gradaudit.backends.numpy import backend as reference
from gradaudit.backends.pytensor import PytensorModel
from gradaudit.backends.pytensor.modes import LIGHT
from gradaudit.direction import Point, displace, random_direction
from gradaudit.errors import AmbiguousBackendError, ModelContractError, OptionError
from gradaudit.recurrent import none, tail
from tests.backends.cutting import marked
from tests.backends.test_networks import case

BACKEND = registry.get("pytensor")


def assert_same(actual, expected, tolerance=1e-10):
    """Each tensor relative to its largest entry; one that is exactly zero must be exactly zero."""
    for name, wanted in expected.items():
        difference = np.abs(actual[name] - wanted).max()
        assert difference <= tolerance * np.abs(wanted).max(), f"{name}: {difference} off"


def by_hand(spec, weights, data, truncate_gradient):
    """The gradient as a user of PyTensor takes it: `pytensor.scan` and `pytensor.grad`, nothing of gradaudit."""
    symbols = {name: pt.tensor(name, dtype="float64", shape=w.shape) for name, w in weights.items()}
    n_sequences = len(data.features)
    activate = {"tanh": pt.tanh, "softmax": lambda a: pt.special.softmax(a, axis=1)}[spec.activation]
    states = pytensor.scan(
        lambda x, h, W, R, b: activate(x @ W + h @ R + b),
        sequences=pt.constant(data.features.swapaxes(0, 1)),
        outputs_info=pt.broadcast_to(symbols["h0"], (n_sequences, spec.n_classes)),
        non_sequences=[symbols[name] for name in ("W", "R", "b")],
        truncate_gradient=truncate_gradient,
        return_updates=False,
        mode=LIGHT,
    )
    p = states if spec.activation == "softmax" else pt.special.softmax(states, axis=2)
    entropies = -pt.log(pt.take_along_axis(p, data.labels.T[:, :, None], axis=2))
    loss = entropies.mean() if spec.outputs == "all" else entropies[-1].mean()
    gradients = pytensor.function([*symbols.values()], pytensor.grad(loss, [*symbols.values()]), mode=LIGHT)
    return dict(zip(symbols, gradients(*weights.values()), strict=True))


@pytest.mark.parametrize("n_steps", [1, 4, 7])
@pytest.mark.parametrize("outputs", ["all", "last"])
@pytest.mark.parametrize("activation", ["tanh", "softmax"])
def test_its_truncated_scan_is_tail(activation, outputs, n_steps):
    """Theano's ``truncate_gradient=k`` for every k, and -1 for none: written by hand, in the backend, in NumPy."""
    spec, weights, data = case(activation, outputs, n_steps=n_steps)
    for k in (*range(1, n_steps + 1), -1):
        truncation = none() if k == -1 else tail(k)
        _, expected = reference.recurrent_model(spec, weights, data, truncation).value_and_grad(weights)
        _, mine = BACKEND.recurrent_model(spec, weights, data, truncation).value_and_grad(weights)
        theirs = by_hand(spec, weights, data, k)
        assert_same(theirs, expected)
        assert_same(mine, expected)
        if 0 < k < n_steps:
            assert not expected["h0"].any()
            assert not theirs["h0"].any()
            assert not mine["h0"].any()
        else:
            assert expected["h0"].any()


def test_the_network_is_one_truncated_scan():
    spec, weights, data = case()
    for truncation, expected in ((none(), -1), (tail(3), 3), (tail(7), -1)):
        model = BACKEND.recurrent_model(spec, weights, data, truncation)._model
        (scan,) = [v.owner.op for v in pytensor.graph.traversal.ancestors([model._loss]) if is_scan(v)]
        assert scan.truncate_gradient == expected


def is_scan(variable):
    return variable.owner is not None and isinstance(variable.owner.op, Scan)


# what people have


def trained(dtype="float64", names=("w", "b")):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 3)).astype(dtype), rng.standard_normal(3).astype(dtype)
    w, b = (pytensor.shared(value, name=name) for value, name in zip(values, names, strict=True))
    x = pytensor.shared(rng.standard_normal((5, 4)).astype(dtype), name="x")
    return w, b, ((pt.special.softmax(x @ w + b, axis=1) - 0.25) ** 2).sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_symbolic_loss_and_its_shared_variables(dtype):
    w, b, loss = trained(dtype)
    before = w.get_value(), b.get_value()
    report = gradaudit.audit(loss, [w, b])
    assert report.verdict is Verdict.AGREE, str(report)
    assert {p.name for p in report.parameters} == {"w", "b"}
    assert report.source == ("a float64 twin" if dtype == "float32" else "the float64 loss itself")
    assert report.environment.items() >= {"backend": "pytensor", "pytensor": pytensor.__version__}.items()
    for variable, value in zip((w, b), before, strict=True):
        assert np.array_equal(variable.get_value(), value)
        assert variable.get_value().dtype == dtype


@pytest.mark.parametrize(("names", "expected"), [((None, None), ["0", "1"]), (("w", "w"), ["0", "1"])])
def test_names_that_are_not_unique_are_places(names, expected):
    w, b, loss = trained(names=names)
    assert [*registry.model_of(loss, [w, b]).parameters()] == expected
    assert [*registry.model_of(loss, {"in": w, "out": b}).parameters()] == ["in", "out"]


def test_one_variable_alone_and_a_function():
    w, b, loss = trained()
    alone = registry.model_of(loss, w)
    assert [*alone.parameters()] == ["w"]
    of = registry.model_of(lambda p: (pt.sin(p["w"]) * p["rest"][0][0]).sum(), {"w": w, "rest": [b, 7]})
    assert [*of.parameters()] == ["w", "rest.0"]
    assert gradaudit.audit(lambda v: pt.sin(v).sum(), w).verdict is Verdict.AGREE


def test_a_truncated_scan_of_the_users_own_is_found():
    """The case that started it all, nothing declared: by the pattern of the inputs' gradient, and by its line."""
    rng = np.random.default_rng(0)
    x = pytensor.shared(rng.standard_normal((30, 2, 3)), name="x")
    w, r = (pytensor.shared(0.5 * rng.standard_normal((3, 3)), name=name) for name in ("w", "r"))
    for k, verdict in ((-1, Verdict.AGREE), (4, Verdict.DISAGREE)):
        states = pytensor.scan(  # CUT
            lambda x, h, w, r: pt.tanh(x @ w + h @ r),
            sequences=x,
            outputs_info=pt.zeros((2, 3)),
            non_sequences=[w, r],
            truncate_gradient=k,
            return_updates=False,
        )
        report = gradaudit.audit((states**2).mean(), [x, w, r])
        assert report.verdict is verdict, str(report)
        if k > 0:
            # compiling a scan may rewrite its step in place: not that of the user
            assert pytensor.function([], pytensor.grad((states**2).mean(), w))().shape == (3, 3)
            (finding,) = report.findings
            assert (finding.code, finding.numbers["k"], finding.numbers["steps"]) == ("GA104", k, 30)
            line = min(marked(test_a_truncated_scan_of_the_users_own_is_found))
            assert (finding.confidence, f"test_pytensor.py:{line}" in finding.title) == ("proven", True), str(report)
            weights = gradaudit.audit((states**2).mean(), [w, r])
            (finding,) = weights.findings
            assert (finding.code, finding.confidence) == ("GA101", "proven"), str(weights)
            assert f"truncate_gradient=4 at test_pytensor.py:{line}" in finding.sentence
            # what it is of the full gradient, and whether it is right given its cut
            bias = 100 * report.findings[0].numbers["bias"]
            assert f"its bias is {bias:.2f} %" in report.findings[0].sentence
            meant = gradaudit.audit((states**2).mean(), [x, w, r], intended=[f"test_pytensor.py:{line}"])
            assert (meant.verdict, meant.judged) == (Verdict.AGREE, "frozen"), str(meant)
            assert meant.findings[0].remedy.startswith("You mean this cut")


def test_a_wrong_gradient_is_wrong_given_its_truncation_too():
    x = pytensor.shared(np.random.default_rng(0).standard_normal((12, 3)), name="x")
    w = pytensor.shared(np.full((3, 3), 0.3), name="w")
    stopped = pytensor.gradient.disconnected_grad(w)
    states = pytensor.scan(lambda x, h, w: pt.tanh(x @ w + h), sequences=x, outputs_info=pt.zeros(3),
                           non_sequences=w, truncate_gradient=4, return_updates=False)  # fmt: skip
    loss = (states @ stopped).mean()
    (scan,) = [cut for cut in registry.model_of(loss, [x, w]).cuts() if cut.kind.startswith("truncate")]
    report = gradaudit.audit(loss, [x, w], intended=[scan.place])
    assert (report.verdict, report.judged) == (Verdict.DISAGREE, "frozen"), str(report)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_first_steps_of_a_truncated_scan_are_held(k):
    """Two states before, an output that is no state, and a sequence: by the derivative of the loss that is held."""
    rng = np.random.default_rng(1)
    x = pytensor.shared(rng.standard_normal((9, 2)), name="x")
    w, start = (pytensor.shared(rng.standard_normal((2, 2)), name=name) for name in ("w", "start"))
    (states, squares) = pytensor.scan(
        lambda x, before, h, w: (pt.tanh(x @ w + h - 0.4 * before), h**2),
        sequences=x,
        outputs_info=[{"initial": start, "taps": [-2, -1]}, None],
        non_sequences=w,
        truncate_gradient=k,
        return_updates=False,
    )
    model = registry.model_of((states * squares).sum() + states[-1].sum(), [x, w, start])
    held, p = model.holding(model.cuts()), model.parameters()
    assert held.loss(p) == model.loss(p)
    found = {name: 0 * p[name] if g is None else g for name, g in held.value_and_grad(p)[1].items()}
    assert_same(found, model.value_and_grad(p)[1])
    changed = p | {"start": p["start"] + 1, "x": p["x"] + np.where(np.arange(9)[:, None] < 9 - k, 1.0, 0.0)}
    assert (held.loss(changed) == model.loss(p)) == (k < 9)
    assert held.loss(p | {"x": p["x"] + 1}) != model.loss(p)


def test_a_scan_that_stops_by_a_condition_is_not_held():
    w, _, _ = trained()
    states = pytensor.scan(lambda h, w: (h * w, until(h > 9)), outputs_info=pt.ones(()),
                           non_sequences=w.sum(), n_steps=5, truncate_gradient=2, return_updates=False)  # fmt: skip
    model = registry.model_of(states[-1] ** 2, [w])
    (cut,) = model.cuts()
    assert model.holding([cut]) is None
    with pytest.raises(OptionError, match=r"can be removed, and not held(.|\n)*without intended="):
        gradaudit.audit(states[-1] ** 2, [w], intended=["*"])


def test_a_loss_without_its_variables():
    w, _, loss = trained()
    with pytest.raises(ModelContractError, match=r"does not say which(.|\n)*Hint: audit\(loss, at=\[W, b\]\)"):
        gradaudit.audit(loss)
    with pytest.raises(AmbiguousBackendError):
        gradaudit.audit(lambda v: v, np.ones(2))
    with pytest.raises(ModelContractError, match="inputs that have no value: missing"):
        gradaudit.audit((w * pt.dscalar("missing")).sum(), [w])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda w: w, "the loss has 2 axes, but it must be one number"),
        (lambda w: (w > 0).sum(), "the loss has dtype int64"),
    ],
)
def test_a_loss_that_is_not_one_number(loss, message):
    w, _, _ = trained()
    with pytest.raises(ModelContractError, match=message):
        gradaudit.audit(loss(w), [w])


def test_a_gradient_that_is_missing_and_one_that_there_is_not():
    w, b, loss = trained()
    model = registry.model_of(loss + pytensor.gradient.disconnected_grad(b).sum() ** 2, [w, b])
    assert model.value_and_grad(model.parameters())[1]["b"] is not None
    model = registry.model_of((pytensor.gradient.disconnected_grad(b) * w).sum(), [w, b])
    report = gradaudit.audit(model)
    assert report.verdict is Verdict.DISAGREE
    assert [f.code for f in report.findings] == ["GA101"]
    with pytest.raises(ModelContractError, match="PyTensor has no gradient of this loss"):
        gradaudit.audit(pytensor.gradient.undefined_grad(w).sum(), [w])


def test_what_has_no_meaning_here_is_none_of_it():
    w, _, loss = trained()
    assert BACKEND.operator(pt.sin, [w], seed=0) is None
    assert BACKEND.step(w, lambda w: w, loss=lambda w: loss, sizes={}) is None
    assert BACKEND.adapt(loss, [w], loss=lambda w: w, gradient=None) is None
    assert BACKEND.adapt(loss, [w], loss=None, gradient=True) is None


def test_cuts_are_listed_removed_and_held():
    w, b, _ = trained()
    stopped = pytensor.gradient.disconnected_grad(w.sum())
    scanned = pytensor.scan(lambda h, b: h * b, outputs_info=b, non_sequences=b, n_steps=5, truncate_gradient=2,
                            return_updates=False)[-1].sum()  # fmt: skip
    data = pytensor.gradient.zero_grad(pytensor.shared(2.0))
    model = registry.model_of((stopped * w).sum() * data + scanned, [w, b])
    stop, scan = sorted(model.cuts(), key=lambda cut: cut.kind)
    assert (stop.kind, scan.kind) == ("disconnected_grad", "truncate_gradient=2")
    assert stop.function == scan.function == "test_cuts_are_listed_removed_and_held"
    p = model.parameters()
    _, whole = model.without([stop, scan]).value_and_grad(p)
    np.testing.assert_allclose(whole["w"], 4 * p["w"].sum(), rtol=1e-14)
    np.testing.assert_allclose(whole["b"], 6 * p["b"] ** 5, rtol=1e-14)
    assert model.without([stop, scan]).cuts() == []
    np.testing.assert_allclose(
        model.holding([scan]).value_and_grad(p)[1]["b"], model.value_and_grad(p)[1]["b"], rtol=1e-14
    )
    held = model.holding([stop])
    assert held.loss(p) == model.loss(p)
    twice = p | {"w": 2 * p["w"]}
    assert held.loss(twice) - held.loss(p) == pytest.approx(2 * p["w"].sum() ** 2, rel=1e-12)


# models


def quadratic(p):
    return (pt.tanh(p["a"]) * p["b"]).sum() + (p["b"] ** 2).sum()


START = {"a": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.linspace(0.5, 1.5, 3)}


def test_a_batch_is_a_loop():
    points = [Point(random_direction("all", dict.fromkeys(START, 1.0), 3), t) for t in (-0.3, 0.0, 0.5)]

    def scanned(p):
        return pytensor.scan(lambda h, b: pt.sin(h * b), outputs_info=p["a"][0], non_sequences=p["b"], n_steps=4,
                             return_updates=False)[-1].sum()  # fmt: skip

    def chosen(p):
        return pytensor.ifelse(p["b"].sum() > 1, quadratic(p), p["a"].sum())

    for function, batched in ((quadratic, True), (scanned, True), (chosen, False)):
        model = BACKEND.function_model(function, START)
        alone = [model.loss(displace(model.parameters(), point)) for point in points]
        np.testing.assert_allclose(model.along(points), alone, rtol=1e-14)
        assert (model._batched is not None) is batched
    wrong = BACKEND.function_model(quadratic, START, batched=lambda stacked: stacked["b"])
    with pytest.raises(ModelContractError, match=r"3 points gave losses of shape \(3, 3\)"):
        wrong.along(points)


def test_forward_mode_other_points_and_the_twin():
    model = BACKEND.function_model(quadratic, {n: p.astype("float32") for n, p in START.items()})
    moved = model.at({n: 2 * p for n, p in model.parameters().items()})
    assert moved.loss(moved.parameters()) != model.loss(model.parameters())
    assert moved.point_bytes == model.point_bytes > 0
    _, gradients = model.value_and_grad(model.parameters())
    assert {g.dtype for g in gradients.values()} == {np.dtype("float32")}
    tangents = {n: np.ones_like(p) for n, p in START.items()}
    assert model.jvp(model.parameters(), tangents) == pytest.approx(sum(g.sum() for g in gradients.values()), rel=1e-6)
    twin = model.twin()
    assert twin.loss(twin.parameters()).dtype == np.float64
    assert twin.twin() is None
    narrow = BACKEND.function_model(lambda p: quadratic(p).astype("float32"), model.parameters())
    assert narrow.twin() is None
    failing = BACKEND.function_model(lambda p: quadratic(p) + p["a"].type.filter(np.float32([[1.0]])).sum(), START)
    assert failing.twin() is None


def test_the_gradient_is_compiled_as_the_users_functions_are():
    seen = []

    class Watching(type(LIGHT)):
        def function_maker(self, *args, **kwargs):
            seen.append(len(args[1]))
            return super().function_maker(*args, **kwargs)

    mode = Watching(LIGHT.linker, LIGHT.optimizer)
    model = PytensorModel(quadratic, START, mode=mode)
    model.loss(START)
    assert seen == []
    loss, _ = model.value_and_grad(START)
    assert len(seen) == 1
    assert loss == pytest.approx(model.loss(START), rel=1e-14)


@pytest.mark.parametrize("mode", ["NUMBA", "FAST_COMPILE"])
def test_other_modes_say_the_same(mode):
    model = PytensorModel(quadratic, START, mode=mode)
    _, gradients = model.value_and_grad(START)
    _, expected = PytensorModel(quadratic, START, mode=LIGHT).value_and_grad(START)
    assert_same(gradients, expected, 1e-14)


def test_losses_need_no_compiler():
    """Neither the operations that are graphs, as softmax, nor the steps of a loop are compiled in the user's mode."""
    x = pt.dmatrix("x")
    states = pytensor.scan(lambda h: pt.special.softmax(h, axis=1), outputs_info=x, n_steps=3, return_updates=False)
    nodes = pytensor.function([x], states.sum(), mode=LIGHT).maker.fgraph.toposort()
    (scan,) = [node.op for node in nodes if isinstance(node.op, Scan)]
    assert scan.mode is LIGHT
    inner = [type(node.op).__name__ for node in scan.fn.maker.fgraph.toposort()]
    assert inner
    assert "Softmax" not in inner


# state


def test_configuration_and_shared_variables_are_as_before():
    w, b, loss = trained()
    generator, before = pytensor.shared(np.random.default_rng(3)), pytensor.config.floatX
    updated, mask = pt.random.bernoulli(0.5, size=(5, 3), rng=generator, return_next_rng=True)
    count = pytensor.shared(0, name="count")
    with pytest.warns(DeprecationWarning, match="default_update"):
        generator.default_update = updated
    with pytest.warns(DeprecationWarning, match="default_update"):
        count.default_update = count + 1
    state = generator.get_value().bit_generator.state
    report = gradaudit.audit(loss + (mask * w.sum()).mean() + 0 * count, [w, b])
    assert report.verdict is Verdict.AGREE, str(report)
    assert [f.code for f in report.findings] == ["GA801"]
    assert generator.get_value().bit_generator.state == state
    assert count.get_value() == 0
    assert pytensor.config.floatX == before


def test_an_empty_tensor_and_a_loss_of_nothing():
    weights = {"w": np.array([0.3, 0.7]), "empty": np.zeros((0, 3))}
    model = BACKEND.function_model(lambda p: pt.sin(p["w"]).sum() + p["empty"].sum(), weights)
    report = gradaudit.audit(model)
    assert (report.verdict, [p.name for p in report.parameters]) == (Verdict.AGREE, ["w"])
    constant = BACKEND.function_model(lambda p: pt.as_tensor(0.1) * 7, weights)
    report = gradaudit.audit(constant)
    assert (report.verdict, [f.code for f in report.findings]) == (Verdict.INCONCLUSIVE, ["GA704"])
