"""A float32 gradient beside that of its float64 twin: rounding is allowed, as much as the loss's conditioning asks."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict


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


def start(n=40):
    return np.random.default_rng(0).uniform(0.2, 0.8, n).astype(np.float32)


def one_entry(g):
    g = g.copy()
    g[7] += 1e-3 * np.linalg.norm(g)
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
