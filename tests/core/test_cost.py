"""What wrong gradients cost: looks that are shared, first looks that confirm, entries that are read last.

Each saving beside what it must not cost: a kink, a loss that stands still nearby, a small error are judged as before.
"""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.measure import plan
from tests.core.models import mlp, of, times

X, Y = np.array([0.3, 0.7, 1.1, -0.4]), np.array([1.2, -0.8])
BASE, FULL, LOOK = 3, 21, 8


def pair(f, slope, *, x=X, size=1.0):
    """``f`` of x, whose gradient is said to be ``slope``, beside the sine of y, whose gradient is wrong."""
    return of(
        lambda p: f(p["x"]).sum() + size * np.sin(p["y"]).sum(),
        lambda p: {"x": slope(p["x"]), "y": 1.1 * size * np.cos(p["y"])},
        x=x,
        y=Y,
    )


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, Verdict.AGREE), (1.01, Verdict.DISAGREE)])
def test_one_large_tensor(factor, verdict):
    """The first look is along its own direction; right: one along the gradient follows, wrong: a fresh direction.

    A wrong one that is long enough to be time costs a mixed difference more: do its steps depend on one another?
    """
    x = np.linspace(-1, 1, 30)
    report = gradaudit.audit(of(lambda p: np.sin(p["x"]).sum(), lambda p: {"x": factor * np.cos(p["x"])}, x=x))
    assert report.verdict is verdict
    assert report.evaluations == BASE + FULL + LOOK + (0 if verdict is Verdict.AGREE else 4)


def test_a_first_look_confirms_what_the_first_estimate_sees_as_well():
    report = gradaudit.audit(pair(np.sin, np.cos))
    assert [p.name for p in report.parameters if p.verdict is Verdict.DISAGREE] == ["y"]
    # two tensors, y along a fresh direction, its two entries
    assert report.evaluations == BASE + FULL + LOOK * (2 + 1 + 2)


@pytest.mark.parametrize("factor", [1 + 3e-6, 1.0001])
def test_a_small_error_is_confirmed_as_well(factor):
    """What a kink could make is bounded by the loss's own curvature: then a full estimate confirms."""
    report = gradaudit.audit(mlp(times(factor, "first")))
    assert [p.name for p in report.parameters if p.verdict is Verdict.DISAGREE] == ["first"]


@pytest.mark.parametrize(("error", "verdict"), [(0.0, Verdict.AGREE), (1e-4, Verdict.DISAGREE)])
def test_a_gap_that_is_proven_is_looked_after(error, verdict):
    """An error of b that cancels along b's direction, and is less than a millionth of the whole gradient."""
    rng = np.random.default_rng(0)
    p = {"w": rng.standard_normal(40), "b": rng.standard_normal(20)}
    (probe,) = plan.tensors(plan.scales(p), ["b"], seed=0)
    v, off = probe.direction.block("b", (20,)), rng.standard_normal(20)
    off -= (off @ v) / (v @ v) * v
    off *= error * np.linalg.norm(np.cos(p["b"])) / np.linalg.norm(off)
    report = gradaudit.audit(
        of(
            lambda p: 1e3 * np.sin(p["w"]).sum() + np.sin(p["b"]).sum(),
            lambda p: {"w": 1e3 * np.cos(p["w"]), "b": np.cos(p["b"]) + off},
            **p,
        )
    )
    assert [q.name for q in report.parameters if q.verdict is Verdict.DISAGREE] == (["b"] if error else [])
    assert report.verdict is verdict
    # one along the gradient, two tensors
    assert error or report.evaluations == BASE + FULL + LOOK * 3


@pytest.mark.parametrize("size", [1.0, 1e7, 1e9])
@pytest.mark.parametrize("slope", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_no_first_look_condemns_what_a_kink_allows(slope, seed, size):
    """Beside a tensor that is wrong, and so large that the first estimate, of both, does not see the kink."""
    x = np.array([0.0, 0.7, 1.1, 2.4])
    relu = pair(lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, slope), x=x, size=size)
    report = gradaudit.audit(relu, seed=seed)
    verdicts = {p.name: p.verdict for p in report.parameters}
    assert verdicts["x"] is not Verdict.DISAGREE, str(report)
    assert verdicts["y"] is Verdict.DISAGREE
    outside = pair(lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1.0, 1.9), x=x, size=size)
    assert gradaudit.audit(outside, seed=seed)["x"].verdict is Verdict.DISAGREE


@pytest.mark.parametrize("digits", [2, 5, 7])
@pytest.mark.parametrize("seed", range(5))
def test_no_first_look_condemns_a_loss_that_stands_still_nearby(digits, seed):
    """A rounded input has the gradient zero, however fine its stairs look from afar; straight-through is wrong."""
    stairs = lambda x: np.sin(np.round(x, digits))  # noqa: E731
    report = gradaudit.audit(pair(stairs, np.zeros_like), seed=seed)
    assert report["x"].verdict is not Verdict.DISAGREE, str(report)
    assert report["y"].verdict is Verdict.DISAGREE


class Ruled:
    """A model whose rules could explain an error, and do not."""

    def __init__(self, model):
        self.model = model
        self.parameters, self.loss, self.value_and_grad = model.parameters, model.loss, model.value_and_grad

    def rules(self):
        return ()

    def replacing(self, rules):
        return None


@pytest.mark.parametrize("entry", [None, 1])
def test_entries_that_no_experiment_tells_are_read_once(entry):
    """As many evaluations, and the same entries, as where they are read at once."""

    def gradient(p):
        g = np.cos(p["x"])
        return {"x": 1.1 * g if entry is None else np.where(np.arange(4) == entry, 1.1, 1.0) * g}

    model = of(lambda p: np.sin(p["x"]).sum(), gradient, x=X)
    at_once, last = gradaudit.audit(model), gradaudit.audit(Ruled(model))
    assert last.evaluations == at_once.evaluations == BASE + FULL + LOOK * (1 + 4)
    assert [f.code for f in last.findings] == [f.code for f in at_once.findings]
    assert last["x"].entries.verdict == at_once["x"].entries.verdict
    np.testing.assert_allclose(last["x"].numeric, np.cos(X), rtol=1e-7)
