"""Each rule in pairs: it fires on a wrong gradient of its kind, and is silent on correct but hard ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.arrays import global_norm
from gradaudit.backends.numpy import NumpyModel, backend
from gradaudit.compare import Comparison
from gradaudit.diagnose.rearranged import transposed
from gradaudit.direction import random_direction
from gradaudit.recurrent import (
    RecurrentSpec,
    chunks,
    initial_weights,
    none,
    random_sequences,
    randomised,
    tail,
    tbptt,
    window,
)
from tests.core.models import mlp, of, replaced, times
from tests.truncated import network

SPEC = RecurrentSpec(n_features=2, n_classes=3, activation="tanh")
DATA = random_sequences(SPEC, n_sequences=4, n_steps=30, seed=0, dtype="float64")
WEIGHTS = {n: 0.5 * np.random.default_rng(7).standard_normal(s) for n, s in SPEC.shapes().items()}


def recurrent(truncation=tail(3), weights=None):
    return backend.recurrent_model(SPEC, weights or WEIGHTS, DATA, truncation)


class Changed:
    """A recurrent model whose gradients are changed, by a function of the gradients."""

    def __init__(self, change, truncation=tail(3)):
        self.inner, self.change, self.truncation = recurrent(truncation), change, truncation
        self.point_bytes, self.along = self.inner.point_bytes, self.inner.along
        self.parameters, self.loss, self.sizes = self.inner.parameters, self.inner.loss, self.inner.sizes

    def value_and_grad(self, parameters):
        loss, gradients = self.inner.value_and_grad(parameters)
        return loss, self.change(gradients)

    def frozen(self):
        return self.inner.frozen()

    def with_truncation(self, truncation):
        return Changed(self.change, truncation)


def drawn(loss_random, gradient_random):
    rng = np.random.default_rng(0)

    def loss(p):
        return (p["x"] ** 2).sum() + (rng.normal() if loss_random else 0)

    def gradient(p):
        return {"x": 2 * p["x"] * (rng.normal() if gradient_random else 1)}

    return of(loss, gradient, x=[0.3, 0.7])


def cancelling(size):
    """A bias before a normalisation has no gradient; what is left of it is rounding, another one at each call."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal(40)

    def loss(p):
        h = x * p["w"] + p["b"]
        return np.sin((h - h.mean()) * p["s"]).sum()

    def gradient(p):
        h = x * p["w"] + p["b"]
        out = np.cos((h - h.mean()) * p["s"])
        of_h = (out - out.mean()) * p["s"]
        found = {"w": (of_h * x).sum(), "s": (out * (h - h.mean())).sum(), "b": size * rng.standard_normal()}
        return {name: np.float32([g]) for name, g in found.items()}

    base = {"w": np.float32([0.7]), "b": np.float32([0.2]), "s": np.float32([0.9])}
    return NumpyModel(loss, base, gradient=gradient, any_dtype=True)


def dropout(factor=1.0):
    """Drops entries by NumPy's global generator: random, but repeatable where the generator is put back."""

    def value_and_grad(p):
        kept = np.random.random(20) > 0.5
        return (np.sin(p["x"]) * kept).sum(), {"x": factor * np.cos(p["x"]) * kept}

    x = {"x": np.random.default_rng(0).standard_normal(20)}
    return NumpyModel(lambda p: value_and_grad(p)[0], x, value_and_grad=value_and_grad)


def accumulating():
    total = np.zeros(2)

    def gradient(p):
        nonlocal total
        total = total + 2 * p["x"]
        return {"x": total}

    return of(lambda p: (p["x"] ** 2).sum(), gradient, x=[0.3, 0.7])


def lagging():
    """Each call returns what the call before computed."""
    last = np.ones(2)

    def gradient(p):
        nonlocal last
        now, last = last, 2 * p["x"]
        return {"x": now}

    return of(lambda p: (p["x"] ** 2).sum(), gradient, x=[0.3, 0.7])


def leftover():
    """Each call adds to what another loss left there."""
    total = np.array([5.0, -3.0])

    def gradient(p):
        nonlocal total
        total = total + 2 * p["x"]
        return {"x": total}

    return of(lambda p: (p["x"] ** 2).sum(), gradient, x=[0.3, 0.7])


def old_parameters():
    old = np.array([0.5, -0.2, 1.0])
    return of(lambda p: np.sin(p["x"]).sum(), lambda p: {"x": np.cos(old)}, x=[0.3, 0.7, -1.1])


def sequence(change, steps=12):
    """A recurrent net whose inputs (T, N) are parameters too; ``change`` changes the gradient of the inputs."""
    c = np.random.default_rng(8).standard_normal((steps, 2))

    def value_and_grad(p):
        h, states = np.zeros(2), []
        for x in p["x"]:
            h = np.tanh(0.8 * h + x)
            states.append(h)
        back, g = np.zeros(2), np.zeros_like(p["x"])
        for t in reversed(range(steps)):
            back = (back + c[t]) * (1 - states[t] ** 2)
            g[t] = back
            back = 0.8 * back
        return (c * states).sum(), {"x": change(g)}

    x = {"x": np.random.default_rng(9).standard_normal((steps, 2))}
    return NumpyModel(lambda p: value_and_grad(p)[0], x, value_and_grad=value_and_grad)


def last_steps(k, n=12):
    return lambda g: g * (np.arange(n) >= n - k)[:, None]


def where_trap():
    """sqrt at 0 in the branch that is not selected: the loss is smooth, back-propagation is 0 * inf."""
    x = np.array([0.0, 2.0])
    return of(lambda p: np.where(p["x"] > 1, np.sqrt(np.abs(p["x"])), p["x"]).sum(),
              lambda p: {"x": np.array([np.nan, 0.5 / np.sqrt(2.0)])}, x=x)  # fmt: skip


def unresolved():
    return NumpyModel(
        lambda p: np.float32(1e6) + np.sin(p["x"]).sum(dtype="float32"),
        {"x": np.float32([0.3, 0.7])},
        gradient=lambda p: {"x": np.cos(p["x"])},
    )


def hidden_single():
    x = np.random.default_rng(0).standard_normal(20)
    return of(lambda p: np.sin(p["x"].astype("float32")).sum(dtype="float64"),
              lambda p: {"x": np.cos(p["x"])}, x=x)  # fmt: skip


def half_single(factor=1.0):
    """Float32 inside one part of a float64 loss: steps that resolve the other do not move it."""
    a, b, c, d = np.random.default_rng(5).standard_normal((4, 20))
    return of(
        lambda p: (c * np.sin(p["a"].astype("float32"))).sum(dtype="float64") + (d * np.sin(p["b"])).sum(),
        lambda p: {"a": factor * c * np.cos(p["a"]), "b": d * np.cos(p["b"])},
        a=a,
        b=b,
    )


def rounded(gradient):
    x = np.random.default_rng(0).standard_normal(20) * 3
    return of(lambda p: (np.round(p["x"]) * np.arange(20)).sum(), lambda p: {"x": gradient * np.arange(20.0)}, x=x)


def relu(slope_at_zero):
    x = np.array([0.0, 0.7, -0.4])
    return of(lambda p: (np.maximum(p["x"], 0) * np.array([1.0, 2.0, 3.0])).sum(),
              lambda p: {"x": np.array([slope_at_zero, 2.0, 0.0])}, x=x)  # fmt: skip


def step():
    return of(lambda p: np.sin(p["x"]).sum() + (p["x"][0] > 0.3), lambda p: {"x": np.cos(p["x"])}, x=[0.3, 0.7])


def large(change):
    """A 30 x 20 tensor whose gradient is changed in place."""
    rng = np.random.default_rng(5)
    c, x = rng.standard_normal((30, 20)), rng.standard_normal((30, 20))

    def gradient(p):
        g = c * np.cos(p["x"])
        change(g)
        return {"x": g}

    return of(lambda p: (c * np.sin(p["x"])).sum(), gradient, x=x)


def narrow(dtype, x=None):
    """A float32 net whose weight gradient is summed in another dtype; its float64 twin sums in float64."""
    x = np.random.default_rng(3).standard_normal((300, 5)).astype("float32") if x is None else x

    def gradient(p):
        rows = x * np.cos(x @ p["w"])[:, None]
        if p["w"].dtype == np.float64:
            return {"w": rows.sum(0)}
        total = np.zeros(5, dtype)
        for row in rows.astype(dtype):
            total = total + row
        return {"w": total.astype("float32")}

    w = {"w": np.float32([0.3, -0.7, 0.2, 0.9, -0.4])}
    return NumpyModel(lambda p: np.sin(x @ p["w"]).sum(), w, gradient=gradient, any_dtype=True)


def square(change):
    """A 12 x 12 tensor; ``change`` makes another gradient of the right one."""
    c, x = np.random.default_rng(6).standard_normal((2, 12, 12))
    return of(lambda p: (c * np.sin(p["x"])).sum(), lambda p: {"x": change(c * np.cos(p["x"])).copy()}, x=x)


def small(change):
    """A 4 x 3 tensor, read entry by entry."""
    c, x = np.random.default_rng(11).standard_normal((2, 4, 3))
    return of(lambda p: (c * np.sin(p["x"])).sum(), lambda p: {"x": change(c * np.cos(p["x"])).copy()}, x=x)


def twins(change):
    """Two tensors of one shape."""
    c, d, a, b = np.random.default_rng(7).standard_normal((4, 5, 7))

    def gradient(p):
        return change({"a": c * np.cos(p["a"]), "b": -d * np.sin(p["b"])})

    return of(lambda p: (c * np.sin(p["a"])).sum() + (d * np.cos(p["b"])).sum(), gradient, a=a, b=b)


def one_entry(g):
    g[3, 17] *= 1.01


def one_row(g):
    g[4] = g[4][::-1].copy()


FIRES = {
    "GA405": large(one_entry),
    "GA406": large(one_row),
    "GA601": relu(0.0),
    "GA602": step(),
    "GA603": rounded(1.0),
    "GA702": hidden_single(),
    "GA102": recurrent(),
    "GA103": Changed(times(1.5, "W")),
    "GA201": mlp(replaced(bias=None)),
    "GA301": mlp(times(0.5)),
    "GA303": mlp(times(-1.0)),
    "GA604": where_trap(),
    "GA701": unresolved(),
    "GA801": drawn(loss_random=True, gradient_random=False),
    "GA802": drawn(loss_random=False, gradient_random=True),
    "GA407": small(lambda g: np.broadcast_to(g.sum(1, keepdims=True), g.shape)),
    "GA703": narrow("float16"),
    "GA704": of(lambda p: 3.7, lambda p: {"x": np.zeros(2), "y": None}, x=[0.3, 0.7], y=[1.0]),
    "GA803": lagging(),
    "GA804": old_parameters(),
    "GA104": sequence(last_steps(3)),
    "GA304": mlp(lambda g: times(1 / np.sqrt(sum((a**2).sum() for a in g.values())))(g)),
    "GA305": mlp(lambda g: {name: np.clip(a, -0.05, 0.05) for name, a in g.items()}),
    "GA401": square(lambda g: g.T),
    "GA402": twins(lambda g: {"a": g["b"], "b": g["a"]}),
    "GA403": square(lambda g: np.concatenate([g[:, 3:6], g[:, :3], g[:, 6:]], axis=1)),
    "GA404": mlp(lambda g: g | {"first": g["first"][::-1].copy()}),
    "GA901": mlp(lambda g: g | {"first": g["first"] * np.linspace(0.5, 2, 24).reshape(4, 6)}),
}


def kink(slope):
    return of(lambda p: np.abs(p["x"]).sum(), lambda p: {"x": np.sign(p["x"]) * slope}, x=[1e-3, 0.7])


def relu_net():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((16, 5)), rng.standard_normal(16)

    def value_and_grad(p):
        h = x @ p["w"]
        error = np.maximum(h, 0) @ p["v"] - y
        out = 2 * error / 16
        return (error**2).mean(), {"w": x.T @ (np.outer(out, p["v"]) * (h > 0)), "v": np.maximum(h, 0).T @ out}

    parameters = {"w": rng.standard_normal((5, 30)), "v": rng.standard_normal(30)}
    return NumpyModel(lambda p: value_and_grad(p)[0], parameters, value_and_grad=value_and_grad)


SILENT = {
    "a large tensor": large(lambda g: None),
    "no truncation": recurrent(none()),
    "truncation without effect": recurrent(tail(30)),
    "truncation of a net that forgets": recurrent(tail(3), {**WEIGHTS, "R": np.zeros((3, 3))}).with_truncation(none()),
    "a tensor that the loss ignores": of(
        lambda p: np.sin(p["x"]).sum(), lambda p: {"x": np.cos(p["x"]), "y": None}, x=[0.3, 0.7], y=[1.0, 2.0]
    ),
    "vanishing": of(lambda p: 1e-30 * np.sin(p["x"]).sum(), lambda p: {"x": 1e-30 * np.cos(p["x"])}, x=[0.3, 0.7]),
    "huge": of(lambda p: 1e30 * np.sin(p["x"]).sum(), lambda p: {"x": 1e30 * np.cos(p["x"])}, x=[0.3, 0.7]),
    "saturated": of(lambda p: np.tanh(p["x"]).sum(), lambda p: {"x": 1 - np.tanh(p["x"]) ** 2}, x=[9.0, 12.0]),
    "oscillating": of(lambda p: np.sin(300 * p["x"]).sum() / 300, lambda p: {"x": np.cos(300 * p["x"])}, x=[0.3, 0.7]),
    "near a kink": kink(1.0),
    "piecewise constant": rounded(0.0),
    "dead units": of(
        lambda p: np.maximum(p["x"] - 5, 0).sum(), lambda p: {"x": 1.0 * (p["x"] > 5)}, x=[0.3, 0.7, -2.0]
    ),
    "a clamp": of(lambda p: np.clip(p["x"].sum(), -1, 1), lambda p: {"x": np.zeros(2)}, x=[3.0, 4.0]),
    "a comparison": of(lambda p: float((p["x"] > 0).sum()), lambda p: {"x": np.zeros(2)}, x=[0.3, -0.7]),
    "a kink far away": relu_net(),
    "offset": of(lambda p: 1e5 + np.sin(p["x"]).sum(), lambda p: {"x": np.cos(p["x"])}, x=[0.3, 0.7]),
    "summed in its own dtype": narrow("float32"),
    "all entries alike": of(lambda p: np.sin(p["x"]).sum(), lambda p: {"x": np.cos(p["x"])}, x=np.full((4, 3), 0.3)),
    "a gradient in time": sequence(lambda g: g),
    "a gradient that vanishes in time": of(
        lambda p: np.sin(1e-3 ** np.arange(12.0) * p["x"]).sum(),
        lambda p: {"x": 1e-3 ** np.arange(12.0) * np.cos(1e-3 ** np.arange(12.0) * p["x"])},
        x=np.linspace(0.3, 2, 12),
    ),
    "a linear loss": of(lambda p: (np.arange(3) * p["x"]).sum(), lambda p: {"x": np.arange(3.0)}, x=[0.3, 0.7, 2.0]),
    "float32 net": mlp(dtype="float32", seed=3),
    "rounding that is another at each call": cancelling(1e-9),
}


@pytest.mark.parametrize("code", FIRES)
def test_fires(code):
    report = gradaudit.audit(FIRES[code])
    codes = [finding.code for finding in report.findings]
    assert codes[0] == code
    allowed = {"GA601": "AGREE", **dict.fromkeys(("GA602", "GA701", "GA704", "GA801"), "INCONCLUSIVE")}
    if code in allowed:
        assert str(report.verdict) == allowed[code]
    elif code != "GA702":
        assert report.verdict is not Verdict.AGREE
    finding = report.findings[0]
    assert finding.sentence.endswith(".")
    assert finding.remedy
    assert finding.confidence in ("proven", "consistent", "unexplained")
    assert f"gradaudit explain {code}" in str(report)


@pytest.mark.parametrize("name", SILENT)
def test_is_silent(name):
    report = gradaudit.audit(SILENT[name])
    assert report.findings == ()
    assert report.verdict is Verdict.AGREE


def test_a_declared_truncation_is_proven_by_lifting_it():
    report = gradaudit.audit(recurrent())
    (finding,) = report.findings
    assert (report.verdict, finding.code, finding.confidence) == (Verdict.DISAGREE, "GA102", "proven")
    assert finding.title == "truncated in time, tail(3), as declared"
    assert "covers only the last 3 of 30 steps" in finding.sentence
    full = recurrent(none()).value_and_grad(WEIGHTS)[1]
    kept = recurrent().value_and_grad(WEIGHTS)[1]
    norms = [np.sqrt(sum((g**2).sum() for g in gradients.values())) for gradients in (kept, full)]
    assert finding.numbers["norm_ratio"] == pytest.approx(norms[0] / norms[1], rel=1e-12)
    left = np.sqrt(sum(((kept[n] - full[n]) ** 2).sum() for n in full))
    assert finding.numbers["bias"] == pytest.approx(left / norms[1], rel=1e-12)
    assert finding.numbers["k_over_steps"] == pytest.approx(0.1)
    assert "pass truncation=tail(3)" in finding.remedy


def test_an_accepted_truncation_agrees_and_shows_its_bias():
    report = gradaudit.audit(recurrent(), truncation=tail(3))
    (finding,) = report.findings
    assert (report.verdict, report.judged, finding.code) == (Verdict.AGREE, "frozen", "GA102")
    assert "its bias is" in finding.sentence
    assert finding.remedy == "You accepted this truncation; the verdict is that of the gradient given its cuts."
    assert str(report).startswith("AGREE given its truncation   ")


def test_accepting_another_truncation_accepts_nothing():
    report = gradaudit.audit(recurrent(), truncation=tail(2))
    assert report.verdict is Verdict.DISAGREE
    assert report.remarks == ("truncation=tail(2) was not used: this model declares tail(3).",)


def test_a_readout_does_not_make_the_bias_small():
    spec = RecurrentSpec(n_features=2, n_classes=2, cell="elman", activation="tanh", n_hidden=3)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in spec.shapes().items()}
    weights["V"] *= 0.1
    data = random_sequences(spec, n_sequences=2, n_steps=12, seed=0, dtype="float64")
    model = backend.recurrent_model(spec, weights, data, window(2))
    kept, full = (m.value_and_grad(weights)[1] for m in (model, model.with_truncation(none())))
    (finding,) = gradaudit.audit(model).findings
    cut = "W", "R", "b"
    left = global_norm({n: kept[n] - full[n] for n in cut})
    assert finding.numbers["bias"] == pytest.approx(left / global_norm({n: full[n] for n in cut}))
    assert finding.numbers["bias"] > 3 * left / global_norm(full)
    assert "Over W, R, b, the gradient's norm is" in finding.sentence


def test_an_accepted_truncation_does_not_hide_a_wrong_gradient():
    report = gradaudit.audit(Changed(times(1.5, "W")), truncation=tail(3))
    assert (report.verdict, report.judged) == (Verdict.DISAGREE, "frozen")
    assert report["W"].verdict is Verdict.DISAGREE
    assert report["R"].verdict is Verdict.AGREE


def test_a_factor_is_named_by_the_models_sizes():
    report = gradaudit.audit(Changed(times(30.0), none()))
    (finding,) = report.findings
    assert finding.code == "GA301"
    assert "the derivative times 30 (= steps, 30)" in finding.sentence
    report = gradaudit.audit(Changed(times(0.25), none()))
    assert "the derivative times 0.25 (= 1 / sequences, 4)" in report.findings[0].sentence


def test_two_causes_are_two_findings():
    report = gradaudit.audit(mlp(lambda g: g | {"bias": None, "second": 2 * g["second"]}))
    assert [(f.code, f.parameters) for f in report.findings] == [("GA201", ("bias",)), ("GA301", ("second",))]


def test_one_entry_has_no_factor():
    report = gradaudit.audit(of(lambda p: p["x"][0] ** 2, lambda p: {"x": 3 * p["x"]}, x=[1.0]))
    assert [f.code for f in report.findings] == ["GA901"]


def test_accumulation_is_recognised():
    (finding,) = gradaudit.audit(accumulating()).findings
    assert finding.code == "GA802"
    assert "The second is twice the first" in finding.sentence
    assert "zero_grad" in finding.remedy


@pytest.mark.parametrize("seed", range(5))
def test_float32_in_a_part_of_a_float64_loss_condemns_nobody(seed):
    report = gradaudit.audit(half_single(), seed=seed)
    assert report.verdict is Verdict.AGREE, str(report)
    assert report.source == "the float64 loss itself, with float32 inside"
    assert [f.code for f in report.findings] == ["GA702"]
    wrong = gradaudit.audit(half_single(1.01), seed=seed)
    assert wrong.verdict is Verdict.DISAGREE, str(wrong)
    assert (wrong["a"].verdict, wrong["b"].verdict) == (Verdict.DISAGREE, Verdict.AGREE)


def test_a_flat_part_of_a_loss_is_no_low_precision():
    """A slope is claimed where there is none, and every digit counts: the gradient is wrong."""
    c, a, b = np.random.default_rng(5).standard_normal((3, 20))
    model = of(
        lambda p: (c * np.sin(p["b"])).sum() + 0 * p["a"].sum(), lambda p: {"a": c, "b": c * np.cos(p["b"])}, a=a, b=b
    )
    report = gradaudit.audit(model)
    assert (report["a"].verdict, report["b"].verdict) == (Verdict.DISAGREE, Verdict.AGREE)
    assert report.source == "the float64 loss itself"


def test_more_than_rounding_is_another_gradient():
    report = gradaudit.audit(cancelling(1e-2))
    assert "GA802" in [f.code for f in report.findings]
    assert report.verdict is not Verdict.AGREE


def test_what_earlier_calls_left_is_recognised():
    (finding,) = gradaudit.audit(leftover()).findings
    assert (finding.code, finding.confidence) == ("GA802", "proven")
    assert "each call adds to what earlier calls left" in finding.sentence


@pytest.mark.parametrize("k", [1, 3, 11])
def test_the_steps_that_are_covered_are_counted(k):
    (finding,) = gradaudit.audit(sequence(last_steps(k))).findings
    assert (finding.code, finding.confidence) == ("GA104", "consistent")
    assert finding.title == f"truncated in time, tail, k = {k}"
    assert f"zero in the first {12 - k} of 12 steps" in finding.sentence
    assert finding.numbers == {"k": k, "steps": 12}


@pytest.mark.parametrize(
    "change",
    [
        lambda g: last_steps(3)(1.01 * g),
        lambda g: g * (np.arange(12) != 4)[:, None],
        lambda g: g * (np.arange(12) < 9)[:, None],
        lambda g: 0.5 * g,
    ],
)
def test_what_is_no_cliff_is_no_truncation(change):
    assert "GA104" not in {finding.code for finding in gradaudit.audit(sequence(change)).findings}


def embedding(frozen, tokens=10, seed=0):
    """The mean of some tokens' rows through a dense layer; the first rows are frozen, as a padding row is."""
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([np.arange(40)[:, None] % tokens, rng.integers(tokens, size=(40, 5))], axis=1)
    v, y = rng.standard_normal(3), rng.standard_normal(40)

    def value_and_grad(p):
        h = np.tanh(p["rows"][chosen].mean(1))
        error = h @ p["v"] - y
        out, g = 2 * error / 40, np.zeros_like(p["rows"])
        np.add.at(g, chosen, (np.outer(out, p["v"]) * (1 - h**2) / 6)[:, None])
        g[:frozen] = 0
        return (error**2).mean(), {"rows": g, "v": h.T @ out}

    parameters = {"rows": rng.standard_normal((tokens, 3)), "v": v}
    return NumpyModel(lambda p: value_and_grad(p)[0], parameters, value_and_grad=value_and_grad)


def dense(frozen, units=9, seed=0):
    """A dense layer, the first units of which are frozen."""
    rng = np.random.default_rng(seed)
    x, y, v = rng.standard_normal((30, 5)), rng.standard_normal(30), rng.standard_normal(units)

    def value_and_grad(p):
        h = np.tanh(x @ p["fc.weight"].T)
        out = 2 * (h @ v - y) / 30
        g = (np.outer(out, v) * (1 - h**2)).T @ x
        g[:frozen] = 0
        return ((h @ v - y) ** 2).mean(), {"fc.weight": g}

    weights = {"fc.weight": rng.standard_normal((units, 5)) / 2}
    return NumpyModel(lambda p: value_and_grad(p)[0], weights, value_and_grad=value_and_grad)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "frozen"), [(embedding, 1), (embedding, 4), (dense, 1), (dense, 6)])
def test_frozen_rows_are_no_steps(rows, frozen, seed):
    assert gradaudit.audit(rows(0, seed=seed)).verdict is Verdict.AGREE
    (finding,) = gradaudit.audit(rows(frozen, seed=seed)).findings
    assert finding.code == "GA406"
    assert f"exactly zero in {frozen} of {10 if rows is embedding else 9} rows" in finding.sentence


@pytest.mark.parametrize("seed", [3, 108, 113])
def test_nor_are_those_of_a_table_with_words_that_never_occur(seed):
    """A zero row among the right ones leaves no cliff; what depends on what makes a tail of it all the same."""
    rng = np.random.default_rng([seed, len("embedding tables")])  # as benchmarks/frozen_rows.py, which found them
    n, width = rng.integers(8, 40), rng.integers(2, 6)
    words, target, out = rng.integers(n, size=(60, 3)), rng.standard_normal(60), rng.standard_normal(width)
    table, frozen = rng.standard_normal((n, width)), rng.integers(1, n // 2)

    def value_and_grad(p):
        h, g = np.tanh(p["table"][words].mean(axis=1)), np.zeros_like(p["table"])
        error = h @ out - target
        np.add.at(g, words, (2 / 60 * error[:, None] * out * (1 - h**2) / 3)[:, None])
        g[:frozen] = 0
        return (error**2).mean(), {"table": g}

    assert not np.isin(np.arange(frozen, n), words).all()
    model = NumpyModel(lambda p: value_and_grad(p)[0], {"table": table}, value_and_grad=value_and_grad)
    report = gradaudit.audit(model)
    assert report.verdict is Verdict.DISAGREE
    assert "GA104" not in {finding.code for finding in report.findings}, str(report)


@pytest.mark.parametrize("change", [lambda g: g * (np.arange(10) > 2), lambda g: 0.5 * g])
def test_the_first_of_a_chain_of_numbers_are_no_steps(change):
    """Each number is coupled with its neighbours, and with no other: nothing is carried on."""

    def gradient(p):
        x = p["x"]
        inner, g = x[1:] - x[:-1] ** 2, np.zeros(10)
        g[:-1] = -400 * x[:-1] * inner - 2 * (1 - x[:-1])
        g[1:] += 200 * inner
        return {"x": change(g)}

    rosenbrock = of(
        lambda p: (100 * (p["x"][1:] - p["x"][:-1] ** 2) ** 2 + (1 - p["x"][:-1]) ** 2).sum(),
        gradient,
        x=np.random.default_rng(0).standard_normal(10),
    )
    assert "GA104" not in {finding.code for finding in gradaudit.audit(rosenbrock).findings}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("steps", "recurrent"), [(8, 0.3), (24, 0.6), (100, 0.9)])
def test_the_order_of_steps_is_seen_in_the_loss(steps, recurrent, seed):
    late = (np.arange(steps) >= steps - 3)[:, None, None]
    model, _ = network(None, steps=steps, recurrent=recurrent, seed=seed, change=lambda g: g * late)
    (finding,) = gradaudit.audit(model).findings
    assert (finding.code, finding.numbers["k"], finding.numbers["steps"]) == ("GA104", 3, steps)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: np.broadcast_to(g.sum(0, keepdims=True), g.shape), "x is the sum over axis 0 of the derivative"),
        (lambda g: np.broadcast_to(g.mean(1, keepdims=True), g.shape), "x is the mean over axis 1 of the derivative"),
    ],
)
def test_the_axis_that_was_summed_over(change, words):
    (finding,) = gradaudit.audit(small(change)).findings
    assert finding.code == "GA407"
    assert words in finding.sentence


@pytest.mark.parametrize("change", [lambda g: g.sum() + 0 * g, lambda g: g[:1] + 0 * g, np.abs])
def test_what_is_no_sum_over_one_axis(change):
    assert "GA407" not in {finding.code for finding in gradaudit.audit(small(change)).findings}


def regression(penalty, given):
    """Least squares with an L2 penalty: its factor in the loss, and that in the gradient."""
    rng = np.random.default_rng(0)
    x, y, w = rng.standard_normal((40, 4)), rng.standard_normal(40), rng.standard_normal(4)
    return of(
        lambda p: ((x @ p["w"] - y) ** 2).mean() + penalty / 2 * p["w"] @ p["w"],
        lambda p: {"w": 2 * x.T @ (x @ p["w"] - y) / 40 + given * p["w"]},
        w=w,
    )


@pytest.mark.parametrize(
    ("penalty", "given", "title", "words"),
    [
        (0.0, 0.1, "weight decay 0.1 in the gradient only", "the derivative plus 0.1 times the parameters."),
        (0.1, 0.0, "L2 penalty 0.1 in the loss only", "a penalty 0.1 / 2 * |parameters|^2 that the gradient lacks."),
        (0.2, 0.1, "L2 penalty 0.1 in the loss only", "the derivative minus 0.1 times the parameters: "),
    ],
)
def test_which_side_has_the_penalty(penalty, given, title, words):
    (finding,) = gradaudit.audit(regression(penalty, given)).findings
    assert (finding.code, finding.title) == ("GA306", title)
    assert words in finding.sentence
    assert ("Add 0.1 * parameters to the gradient" in finding.remedy) == (penalty > given)
    assert finding.numbers["decay"] == pytest.approx(given - penalty)
    assert gradaudit.audit(regression(penalty, penalty)).verdict is Verdict.AGREE


def clipped_while_scaled(scale, limit=1.0):
    def fault(gradients):
        norm = np.sqrt(sum((scale * a) ** 2 for g in gradients.values() for a in g.ravel()))
        return {name: g * limit / norm for name, g in gradients.items()}

    return mlp(fault)


@pytest.mark.parametrize("limit", [1 - 1e-8, 1 + 1e-8, 0.1 - 1e-9, 0.5 - 1e-8])
def test_rounding_leaves_a_norm_on_either_side_of_its_threshold(limit):
    (finding,) = gradaudit.audit(clipped_while_scaled(1, limit=limit)).findings
    assert (finding.code, finding.title) == ("GA304", f"clipped by norm {round(limit, 3):g}")


@pytest.mark.parametrize("scale", [2**10, 2**16])
def test_clipped_before_the_loss_scale_was_divided_out(scale):
    (finding,) = gradaudit.audit(clipped_while_scaled(scale)).findings
    assert finding.code == "GA304"
    assert finding.title == f"clipped by norm 1, while scaled by {scale:,}"
    assert "before the loss scale was divided out" in finding.sentence


def test_any_other_norm_is_just_a_factor():
    (finding,) = gradaudit.audit(clipped_while_scaled(1000, limit=1.234)).findings
    assert finding.code == "GA301"


def test_a_fault_of_both_precisions_is_not_one_of_float32():
    model = mlp(times(1.1), dtype="float32")
    codes = [f.code for f in gradaudit.audit(recurrent()).findings + gradaudit.audit(model).findings]
    assert "GA703" not in codes


@pytest.mark.parametrize(
    ("truncation", "words"),
    [
        (window(2), "Every loss goes back 2 of {T} steps at most."),
        (chunks(3), "does not cross from one block of 3 of {T} steps to the block before."),
        (tbptt(2, 3), "In blocks of 2, losses go back 3 of {T} steps at most, counted from the end of their block."),
        (randomised(0.5), "is cut with probability 0.5, and scaled up where it is not"),
    ],
    ids=str,
)
def test_every_truncation_as_declared(truncation, words):
    model = recurrent(truncation)
    report = gradaudit.audit(model)
    (finding,) = report.findings
    assert (report.verdict, finding.code, finding.confidence) == (Verdict.DISAGREE, "GA102", "proven")
    assert words.format(T=DATA.features.shape[1]) in finding.sentence
    assert finding.evidence.startswith("With the states that are cut held at the base point")
    accepted = gradaudit.audit(model, truncation=truncation)
    assert (accepted.verdict, accepted.judged) == (Verdict.AGREE, "frozen")


def test_another_truncation_than_declared():
    class Lying:
        def __init__(self):
            self.inner, self.truncation = recurrent(window(2)), chunks(2)

        def frozen(self):
            return recurrent(chunks(2)).frozen()

        def __getattr__(self, name):
            return getattr(self.inner, name)

    assert next(f.code for f in gradaudit.audit(Lying()).findings) == "GA103"


def test_a_factor_on_a_linear_loss_is_not_stale():
    model = of(lambda p: (np.arange(3) * p["x"]).sum(), lambda p: {"x": 2 * np.arange(3.0)}, x=[0.3, 0.7, 2.0])
    assert [finding.code for finding in gradaudit.audit(model).findings] == ["GA301"]


def test_the_digits_lost_are_said():
    (finding,) = gradaudit.audit(unresolved()).findings
    assert "the loss 1.00e+06 is known to its own rounding only (the float32 loss itself)" in finding.sentence
    assert finding.numbers["resolution"] > 1e-2
    assert "a float64 copy of the model" in finding.remedy


def test_seed_case_weights_reproduce_the_origin():
    spec = RecurrentSpec(n_features=2, n_classes=2)
    weights = initial_weights(spec, seed=0)
    data = random_sequences(spec, n_sequences=10, n_steps=500, seed=0)
    report = gradaudit.audit(backend.recurrent_model(spec, weights, data, tail(1)))
    assert [f.code for f in report.findings] == ["GA102"]
    assert report.source == "a float64 twin"


@pytest.mark.parametrize(
    ("slope", "verdict", "place"),
    [
        (0.0, Verdict.AGREE, "one of the two sides, and allowed"),
        (1.0, Verdict.AGREE, "one of the two sides, and allowed"),
        (0.5, Verdict.AGREE, "between them, and allowed"),
        (1.5, Verdict.DISAGREE, "outside"),
        (-0.3, Verdict.DISAGREE, "outside"),
    ],
)
def test_any_value_between_the_sides_of_a_kink_is_allowed(slope, verdict, place):
    report = gradaudit.audit(relu(slope))
    assert report.verdict is verdict
    finding = next(f for f in report.findings if f.code == "GA601")
    assert place in finding.sentence


@pytest.mark.parametrize("at", [3e-8, -5e-7, 1e-6])
def test_a_kink_nearby_is_no_error(at):
    model = of(lambda p: np.maximum(p["x"], 0).sum(), lambda p: {"x": (p["x"] > 0) * 1.0}, x=[at, 0.7, -0.4])
    assert gradaudit.audit(model).verdict is Verdict.AGREE


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.AGREE), (1.1, Verdict.DISAGREE)])
def test_random_numbers_that_can_be_held_are_held(factor, verdict):
    report = gradaudit.audit(dropout(factor))
    assert report.verdict is verdict
    assert report.findings[0].code == "GA801"
    assert "the gradient was judged so" in report.findings[0].evidence
    assert [f.code for f in report.findings[1:]] == ([] if factor == 1 else ["GA301"])


def test_the_wrong_entry_of_a_large_tensor_is_read():
    report = gradaudit.audit(large(one_entry))
    (entry,) = report["x"].wrong
    assert entry.index == (3, 17)
    assert entry.analytic == pytest.approx(1.01 * entry.numeric, rel=1e-6)
    assert "x, 1 of 600 entries: (3, 17) analytic" in report.findings[0].sentence
    assert "the others are right" in report.findings[0].sentence
    assert "(3, 17)" in report["x"].where


def test_the_wrong_entry_of_a_small_tensor_is_named():
    def fault(gradients):
        wrong = gradients["second"].copy()
        wrong[2, 1] *= 1.01
        return gradients | {"second": wrong}

    report = gradaudit.audit(mlp(fault))
    assert report.findings[0].code == "GA405"
    assert [entry.index for entry in report["second"].wrong] == [(2, 1)]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("GA304", "clipped by norm 1"),
        ("GA305", "clipped by value 0.05"),
        ("GA401", "x is the derivative when transposed"),
        ("GA402", "a has the gradient of b, and b that of a"),
        ("GA403", "4 equal blocks of axis 1 in the order 1, 0, 2, 3"),
        ("GA404", "first is the derivative when reversed along axis 0"),
    ],
)
def test_what_was_done_to_it_is_said(code, words):
    finding = gradaudit.audit(FIRES[code]).findings[0]
    assert words in f"{finding.title}. {finding.sentence}"


@pytest.mark.parametrize("change", [lambda g: 1.5 * g.T, lambda g: g + 0.1 * g.T, lambda g: np.roll(g, 2, 0)])
def test_what_no_rearrangement_explains_is_no_rearrangement(change):
    codes = {finding.code for finding in gradaudit.audit(square(change)).findings}
    assert not codes & {"GA401", "GA402", "GA403", "GA404"}


@pytest.mark.parametrize(("bound", "fits"), [(1e-6, True), (0.5, False), (np.inf, False)])
def test_looks_that_fit_anything_prove_no_rearrangement(bound, fits):
    """Two looks at a transposed gradient, sharp or coarse."""
    g = np.random.default_rng(0).standard_normal((3, 3))
    looks = [
        Comparison(
            direction=(d := random_direction("x", {"x": 1.0}, seed)),
            analytic=d.dot({"x": g}),
            numeric=d.dot({"x": g.T}),
            bound=bound,
            scale=1.0,
            resolution=bound,
            relative_error=1.0,
            verdict=Verdict.DISAGREE,
            holds=False,
        )
        for seed in (1, 2)
    ]
    evidence = SimpleNamespace(
        lines=lambda names: looks, wrong=lambda: ["x"], baseline=SimpleNamespace(gradients={"x": g})
    )
    assert (transposed(evidence) is not None) == fits


@pytest.mark.parametrize("factor", [0.37, 2.0])
def test_a_factor_without_a_round_norm_is_a_factor(factor):
    assert gradaudit.audit(mlp(times(factor))).findings[0].code == "GA301"


def test_a_wrong_row_is_named():
    finding = gradaudit.audit(large(one_row)).findings[0]
    assert "row 4" in finding.sentence
    assert "the rest is right" in finding.sentence


def test_without_budget_nothing_is_located():
    report = gradaudit.audit(large(one_row), max_evaluations=70)
    assert report.verdict is Verdict.DISAGREE
    assert report.findings[0].code == "GA901"
    assert report["x"].where == ""


def test_a_kink_hides_no_error_beside_it():
    for factor, verdict in ((1.0, Verdict.AGREE), (1.1, Verdict.DISAGREE), (2.0, Verdict.DISAGREE)):
        model = of(
            lambda p: abs(p["x"][0]) + np.sin(p["x"][1:]).sum(),
            lambda p, factor=factor: {"x": np.array([0.0, factor * np.cos(p["x"][1]), np.cos(p["x"][2])])},
            x=[0.0, 0.7, -0.4],
        )
        assert gradaudit.audit(model).verdict is verdict


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.AGREE), (1.1, Verdict.DISAGREE)])
def test_kinks_in_a_large_tensor_are_judged_beside_it(factor, verdict, seed):
    """With two kinks of different signs a tenth of the gradient fits between the sides."""
    x = np.concatenate([[0.0, 0.0], np.random.default_rng(1).standard_normal(30)])
    scale = np.where((np.arange(32) >= 2) & (np.arange(32) < 12), factor, 1.0)
    model = of(lambda p: np.maximum(p["x"], 0).sum(), lambda p: {"x": scale * (p["x"] > 0)}, x=x)
    report = gradaudit.audit(model, seed=seed)
    assert report.verdict is verdict
    assert report.loss == pytest.approx(np.maximum(x, 0).sum(), rel=1e-12)
    codes = [finding.code for finding in report.findings]
    assert codes[0] == "GA601"
    assert len(codes) == (1 if factor == 1 else 2)


def test_a_kink_that_cannot_be_left_stays_open():
    """One step aside the loss is not finite, so nothing can be judged there."""
    x = np.concatenate([[0.0, 0.0], np.random.default_rng(1).standard_normal(30)])
    near = np.abs(x).max() * 1e-3

    def loss(p):
        return np.maximum(p["x"], 0).sum() if np.abs(p["x"] - x).max() < near else np.inf

    model = of(loss, lambda p: {"x": 1.0 * (p["x"] > 0)}, x=x)
    verdicts = {gradaudit.audit(model, seed=seed).verdict for seed in range(8)}
    assert Verdict.INCONCLUSIVE in verdicts
    assert Verdict.DISAGREE not in verdicts


def test_an_infinite_derivative_condemns_nobody():
    model = of(lambda p: np.sqrt(p["x"]).sum(), lambda p: {"x": 0.5 / np.sqrt(p["x"])}, x=[0.0, 0.0])
    with np.errstate(divide="ignore", invalid="ignore"):
        report = gradaudit.audit(model)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "numeric derivative is finite" not in report.findings[0].sentence


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("truncation", "words"),
    [
        (window(5), "window, k = 5"),
        (chunks(7), "chunks, k = 7"),
        (tbptt(3, 7), "tbptt, k1 = 3, k = 7"),
    ],
    ids=str,
)
def test_truncations_without_a_cliff_are_named(truncation, words, dtype):
    model, _ = network(truncation, dtype=dtype)
    report = gradaudit.audit(model)
    (finding,) = report.findings
    assert (finding.code, finding.confidence) == ("GA104", "consistent")
    assert finding.title == f"truncated in time, {words}"
    assert (finding.numbers["k"], finding.numbers["steps"]) == (truncation.k, 24)
    assert finding.numbers.get("k1") == truncation.k1


@pytest.mark.parametrize(
    ("truncation", "change"),
    [
        (none(), lambda g: g),
        (none(), lambda g: 1.01 * g),
        (none(), lambda g: g * (np.arange(24) != 4)[:, None, None]),
        (window(5), lambda g: 1.01 * g),
        (window(5), lambda g: g + (np.arange(24) == 21)[:, None, None]),
    ],
    ids=["right", "a factor", "a hole", "truncated, and a factor", "truncated, and an error"],
)
@pytest.mark.parametrize("recurrent", [0.9, 1e-3], ids=["remembers", "vanishes"])
def test_no_truncation_without_a_cliff_is_seen_where_it_does_not_explain_all(truncation, change, recurrent):
    model, _ = network(truncation, change=change, recurrent=recurrent)
    assert "GA104" not in {finding.code for finding in gradaudit.audit(model).findings}
