"""A float32 gradient beside that of its float64 twin: rounding is allowed, as much as the loss's conditioning asks."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends.numpy import NumpyModel


class Mapped:
    """The sum of logistic maps, iterated: every step about doubles what rounding does to the gradient."""

    def __init__(self, x, steps, change=None):
        self.x, self.steps, self.change = x, steps, change

    def parameters(self):
        return {"x": self.x}

    def value_and_grad(self, p):
        x, slope = p["x"], np.ones_like(p["x"])
        rate = x.dtype.type(3.9)
        for _ in range(self.steps):
            slope = slope * rate * (1 - 2 * x)
            x = rate * x * (1 - x)
        gradient = slope if self.change is None else self.change(slope)
        return x.sum(), {"x": gradient.astype(x.dtype)}

    def loss(self, p):
        return self.value_and_grad(p)[0]

    def twin(self):
        return Mapped(self.x.astype(np.float64), self.steps) if self.x.dtype == np.float32 else None


def start(n=40, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 0.8, n).astype(np.float32)


def one_entry(g):
    g = g.copy()
    g[7] += 1e-4 * np.sqrt(np.mean(g**2))
    return g


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("change", [lambda g: g * np.float32(1 + 1e-4), lambda g: g * np.float32(1 - 1e-4), one_entry])
def test_an_error_of_the_float32_gradient_alone_is_seen(change, seed):
    report = gradaudit.audit(Mapped(start(), 1, change), seed=seed)
    assert report.source == "a float64 twin"
    assert report.verdict is Verdict.DISAGREE, str(report)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 4, 8, 12])
def test_rounding_of_an_ill_conditioned_gradient_is_no_error(steps, seed):
    """After twelve steps float32 is off by more than a flat share of the gradient."""
    right = Mapped(start(), steps)
    native = right.value_and_grad(right.parameters())[1]["x"]
    exact = right.twin().value_and_grad(right.twin().parameters())[1]["x"]
    off = np.linalg.norm(native - exact) / np.linalg.norm(exact)
    assert (off > 5e-5) == (steps == 12)
    assert gradaudit.audit(right, seed=seed).verdict is Verdict.AGREE


@pytest.mark.parametrize(("steps", "gradients"), [(1, 3), (4, 3), (8, 4)])
def test_conditioning_is_looked_at_only_where_rounding_is_not_settled_without(steps, gradients):
    assert gradaudit.audit(Mapped(start(), steps)).gradients == gradients


@pytest.mark.parametrize("seed", range(5))
def test_a_gradient_is_resolved_through_its_twins(seed):
    """Rounding as large as that asked for up to nine more directions; now what it leaves open is known."""
    right = Mapped(start(seed=seed), 12)
    native = right.value_and_grad(right.parameters())[1]["x"]
    exact = right.twin().value_and_grad(right.twin().parameters())[1]["x"]
    off = np.linalg.norm(native - exact) / np.linalg.norm(exact)
    report = gradaudit.audit(right, seed=seed)
    (parameter,) = report.parameters
    # twin 1, baseline 3, whole model 21, with one seed a round of 6 more; along the gradient and one more: 8 each
    assert report.evaluations in (1 + 3 + 21 + 8 * 2, 1 + 3 + 21 + 6 + 8 * 2)
    # never below what it is off by
    assert off < parameter.resolution < 1e-3


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("steps", [14, 20, 30])
def test_a_chaotic_maps_rounding_is_never_called_an_error(steps, seed):
    """It may be larger than the gradient; an error of a tenth repeats itself at points nearby, where chaos is mild."""
    right = Mapped(start(seed=seed), steps)
    assert gradaudit.audit(right, seed=seed).verdict is not Verdict.DISAGREE
    wrong = Mapped(start(seed=seed), min(steps, 14), lambda g: g * np.float32(1.1))
    assert gradaudit.audit(wrong, seed=seed).verdict is Verdict.DISAGREE


class Inside(Mapped):
    """The change is in the code that float64 runs as well."""

    def twin(self):
        return Inside(self.x.astype(np.float64), self.steps, self.change) if self.x.dtype == np.float32 else None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [12, 14])
def test_rounding_does_not_hide_an_error_that_the_twin_has_too(steps, seed):
    """The float32 gradient is off by more than 1e-4 anyway; its twin is right to 1e-9."""
    right = Inside(start(seed=seed), steps)
    assert gradaudit.audit(right, seed=seed).verdict is not Verdict.DISAGREE
    wrong = Inside(start(seed=seed), steps, lambda g: (g * (1 + 1e-4)).astype(g.dtype))
    assert gradaudit.audit(wrong, seed=seed).verdict is Verdict.DISAGREE


@pytest.mark.parametrize("seed", range(5))
def test_a_constant_in_float32_is_no_error_of_the_twin(seed):
    constant = np.float64(np.float32(0.1)) / 0.1
    assert abs(constant - 1) > 1e-9
    held = Inside(start(seed=seed), 12, lambda g: (g * constant).astype(g.dtype))
    assert gradaudit.audit(held, seed=seed).verdict is Verdict.AGREE


class Cancelling:
    """The variance of projected data with a mean of 100: up to three digits of the float32 gradient cancel."""

    def __init__(self, seed, dtype="float32", factor=1.0):
        rng = np.random.default_rng(seed)
        self.seed, self.dtype, self.factor = seed, dtype, factor
        self.x = (rng.standard_normal((64, 8)) + 100).astype(dtype)
        self.w = rng.standard_normal(8).astype("float32").astype(dtype)

    def parameters(self):
        return {"w": self.w}

    def loss(self, p):
        return (self.x @ p["w"]).var()

    def value_and_grad(self, p):
        h = self.x @ p["w"]
        g = 2 * self.x.T @ (h - h.mean()) / np.asarray(64, self.dtype)
        return h.var(), {"w": g * np.asarray(self.factor, self.dtype)}

    def twin(self):
        return Cancelling(self.seed, "float64") if self.dtype == "float32" else None


@pytest.mark.parametrize("seed", range(10))
def test_digits_that_cancel_are_no_error_and_hide_none_of_ten_per_cent(seed):
    right = Cancelling(seed)
    exact = right.twin()
    off = np.abs(
        right.value_and_grad(right.parameters())[1]["w"] / exact.value_and_grad(exact.parameters())[1]["w"] - 1
    )
    assert off.max() > 3e-6
    assert gradaudit.audit(right, seed=seed).verdict is not Verdict.DISAGREE
    assert gradaudit.audit(Cancelling(seed, factor=1.1), seed=seed).verdict is Verdict.DISAGREE


class Saturated:
    """A layer of tanh so far out that float32 rounds most of what is left of its derivative, ``1 - tanh^2``."""

    def __init__(self, seed, dtype="float32", sign=1):
        rng = np.random.default_rng(seed)
        self.seed, self.dtype, self.sign = seed, dtype, sign
        self.x = rng.standard_normal((30, 4)).astype("float32").astype(dtype)
        parameters = {"w": 2.5 * rng.standard_normal((4, 5)), "v": rng.standard_normal(5)}
        self.p = {n: p.astype("float32").astype(dtype) for n, p in parameters.items()}

    def parameters(self):
        return self.p

    def loss(self, p):
        return (np.tanh(self.x @ p["w"] + 6) @ p["v"]).sum()

    def value_and_grad(self, p):
        z = np.tanh(self.x @ p["w"] + 6)
        inner = self.sign * (1 - z * z) * p["v"]
        return (z @ p["v"]).sum(), {"w": self.x.T @ inner, "v": z.sum(0)}

    def twin(self):
        return Saturated(self.seed, "float64") if self.dtype == "float32" else None


@pytest.mark.parametrize("seed", range(10))
def test_a_saturated_layer_is_no_error_and_its_sign_is(seed):
    assert gradaudit.audit(Saturated(seed), seed=seed).verdict is Verdict.AGREE
    assert gradaudit.audit(Saturated(seed, sign=-1), seed=seed)["w"].verdict is Verdict.DISAGREE


def settled(seed, sign=1.0):
    """H <- tanh(W h), forty steps: it settles so far out that float32 leaves a few eps of most derivatives."""
    rng = np.random.default_rng(seed)
    start = {"w": (3 * rng.standard_normal((2, 2))).astype("float32"), "h": rng.standard_normal(2).astype("float32")}

    def path(p):
        seen = [p["h"]]
        for _ in range(40):
            seen.append(np.tanh(p["w"] @ seen[-1]))
        return seen

    def gradient(p):
        seen, dw, dh = path(p), np.zeros_like(p["w"]), np.ones_like(p["h"])
        for before, after in zip(seen[-2::-1], seen[:0:-1], strict=True):
            inner = dh * (1 - after * after)
            dw, dh = dw + np.outer(inner, before), p["w"].T @ inner
        factor = p["h"].dtype.type(sign if p["h"].dtype == np.float32 else 1)
        return {"w": factor * dw, "h": factor * dh}

    return NumpyModel(lambda p: path(p)[-1].sum(), start, gradient=gradient, any_dtype=True)


@pytest.mark.parametrize("seed", [77, 92, 136, 188, 225, 241, 245, 346, 362, 430])
def test_what_rounding_leaves_of_a_vanished_gradient_is_no_error(seed):
    """Those of the seeds below 500 at which an entry is off by more than its own size explains.

    At 92 all of it is rounding: then nothing can be said of the wrong sign either.
    """
    assert gradaudit.audit(settled(seed), seed=seed).verdict is not Verdict.DISAGREE
    wrong = Verdict.INCONCLUSIVE if seed == 92 else Verdict.DISAGREE
    assert gradaudit.audit(settled(seed, sign=-1.0), seed=seed).verdict is wrong


def test_an_offset_of_the_loss_excuses_no_error():
    x = np.float32([0.3, -0.7, 1.1, 0.2])

    def model(factor):
        def gradient(p):
            return {"x": (1e-6 * np.cos(p["x"]) * (factor if p["x"].dtype == np.float32 else 1)).astype(p["x"].dtype)}

        return NumpyModel(lambda p: 3 + 1e-6 * np.sin(p["x"]).sum(), {"x": x}, gradient=gradient, any_dtype=True)

    assert gradaudit.audit(model(1.0)).verdict is Verdict.AGREE
    assert gradaudit.audit(model(1.1)).verdict is Verdict.DISAGREE


class PartlySingle:
    """A layer whose first weights are rounded to float32 inside, also in the "float64" twin."""

    def __init__(self, seed, dtype="float32", factor=1.0):
        rng = np.random.default_rng(seed)
        self.seed, self.dtype, self.factor = seed, dtype, factor
        self.x = rng.standard_normal((20, 4)).astype("float32").astype(dtype)
        parameters = {"w": rng.standard_normal((4, 5)), "v": rng.standard_normal(5)}
        self.p = {n: p.astype("float32").astype(dtype) for n, p in parameters.items()}

    def parameters(self):
        return self.p

    def loss(self, p):
        return self.value_and_grad(p)[0]

    def value_and_grad(self, p):
        h = np.tanh(self.x @ p["w"].astype("float32").astype(self.dtype))
        out = h @ p["v"]
        back = 2 * out / np.asarray(20, self.dtype)
        inner = back[:, None] * p["v"] * (1 - h**2)
        factor = np.asarray(self.factor, self.dtype)
        return (out**2).mean(), {"w": self.x.T @ inner * factor, "v": h.T @ back}

    def twin(self):
        return PartlySingle(self.seed, "float64", self.factor) if self.dtype == "float32" else None


@pytest.mark.parametrize("seed", range(8))
def test_a_twin_that_rounds_inside_condemns_nobody(seed):
    report = gradaudit.audit(PartlySingle(seed), seed=seed)
    assert report.verdict is not Verdict.DISAGREE, str(report)
    wrong = gradaudit.audit(PartlySingle(seed, factor=1.1), seed=seed)
    assert wrong.verdict is Verdict.DISAGREE, str(wrong)
    assert wrong.source == "the float32 loss itself"


class Remembering:
    """A loss of numbers that it keeps: float32 ones are copied there, a "twin" finds what is there already."""

    def __init__(self, dtype="float32", kept=None, used="both"):
        self.dtype, self.used = dtype, used
        self.kept = {} if kept is None else kept

    def parameters(self):
        rng = np.random.default_rng(0)
        return {n: rng.standard_normal(6).astype("float32").astype(self.dtype) for n in ("a", "b")}

    def loss(self, p):
        if self.dtype == "float32":
            self.kept |= p
        other = self.kept["b"].astype(self.dtype) if self.used == "both" else 0
        return np.sin(p["a"] + other).sum()

    def value_and_grad(self, p):
        slope = np.cos(p["a"] + (p["b"] if self.used == "both" else 0))
        return self.loss(p), {"a": slope, "b": None}

    def twin(self):
        return Remembering("float64", self.kept, self.used) if self.dtype == "float32" else None


@pytest.mark.parametrize("seed", range(5))
def test_a_twin_that_stands_still_where_the_loss_moves_is_none(seed):
    report = gradaudit.audit(Remembering(), seed=seed)
    assert report.verdict is Verdict.DISAGREE, str(report)
    assert report.source == "the float32 loss itself"
    assert [p.name for p in report.parameters if p.verdict is Verdict.DISAGREE] == ["b"]
    assert "GA201" in [f.code for f in report.findings]


@pytest.mark.parametrize("seed", range(5))
def test_a_twin_stands_still_where_the_loss_does(seed):
    """At the price of two evaluations."""
    report = gradaudit.audit(Remembering(used="a"), seed=seed)
    assert (report.verdict, report.source) == (Verdict.AGREE, "a float64 twin")
    assert report.evaluations == 1 + 3 + 21 + 8 * 3 + 2


class Unknowing:
    """A loss of rounded numbers, without a gradient."""

    def __init__(self, rounded, dtype="float32"):
        self.rounded, self.dtype = rounded, dtype

    def parameters(self):
        return {"x": np.random.default_rng(0).standard_normal(40).astype("float32").astype(self.dtype)}

    def loss(self, p):
        return np.sin(self.rounded(p["x"]).astype(self.dtype)).sum()

    def value_and_grad(self, p):
        return self.loss(p), {"x": None}

    def twin(self):
        return Unknowing(self.rounded, "float64") if self.dtype == "float32" else None


@pytest.mark.parametrize("seed", range(8))
def test_a_missing_gradient_is_not_right_because_a_twin_rounds_inside(seed):
    """Steps of float64 are too short to move it; one that is rounded on purpose has no gradient."""
    to_single = Unknowing(lambda x: x.astype("float32"))
    assert gradaudit.audit(to_single, seed=seed).verdict is Verdict.DISAGREE
    report = gradaudit.audit(Unknowing(lambda x: np.round(x, 1)), seed=seed)
    assert (report.verdict, report.source) == (Verdict.AGREE, "a float64 twin")
