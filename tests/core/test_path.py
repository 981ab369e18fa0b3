"""Along paths a right gradient is the derivative of its loss whatever lies between; a wrong one is not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.backends.numpy import NumpyModel
from gradaudit.compare import excluded
from gradaudit.measure import measurement
from gradaudit.measure.path import Along, along_paths
from gradaudit.numeric.budget import Budget
from gradaudit.options import AuditOptions


def layer(seed=0, change=lambda g: g, offset=0.0):
    """A layer of relus in float32, whose kinks lie between 1e-7 and 1 from the base point."""
    rng = np.random.default_rng(seed)
    x, v = rng.standard_normal((30, 5)).astype("float32"), rng.standard_normal(30).astype("float32")
    w = rng.standard_normal(5).astype("float32")
    b = (10 ** rng.uniform(-7, 0, 30) * rng.choice([-1, 1], 30) - x.astype(float) @ w).astype("float32")

    def loss(p):
        return np.float32(offset) + (v * np.maximum(x @ p["w"] + b, 0)).sum(dtype="float32")

    def gradient(p):
        return {"w": change(x.T @ (v * (x @ p["w"] + b > 0))).astype("float32")}

    return NumpyModel(loss, {"w": w}, gradient=gradient)


def one_entry(g):
    return g * np.float32([1, 1, 2, 1, 1])


def along(model, budget=None, seed=0):
    return along_paths(model, "w", 1.0, budget or Budget(10_000, None), seed)


@pytest.mark.parametrize("seed", range(20))
def test_kinks_do_not_disturb(seed):
    found = along(layer(seed), seed=seed)
    assert found.holds
    assert found.resolution < 0.4


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("change", [lambda g: 1.3 * g, lambda g: -g, lambda g: g[::-1].copy(), one_entry])
def test_an_error_does_not_hold(seed, change):
    found = along(layer(seed, change), seed=seed)
    assert not found.holds or found.resolution > 0.2


def test_what_it_costs():
    budget = Budget(10_000, None)
    along(layer(), budget)
    assert dict(budget.spent) == {"paths": 20, "gradient": 10 * 33}


def test_a_gradient_of_zeros_is_never_cleared():
    start = {"w": np.float32([0.3, 1.2])}
    steps = NumpyModel(lambda p: np.round(p["w"]).sum(), start, gradient=lambda p: {"w": np.zeros_like(p["w"])})
    assert not along(steps).holds


@pytest.mark.parametrize("seed", range(10))
def test_an_audit_without_a_twin(seed):
    right = gradaudit.audit(layer(seed), seed=seed)
    assert right.verdict is not Verdict.DISAGREE, str(right)
    wrong = gradaudit.audit(layer(seed, lambda g: 1.3 * g), seed=seed)
    assert wrong.verdict is not Verdict.AGREE, str(wrong)


def test_a_path_that_leaves_the_domain_tells_nothing():
    def loss(p):
        if (p["w"] < 0).any():
            raise ValueError
        return np.sqrt(p["w"]).sum()

    model = NumpyModel(loss, {"w": np.float32([0.1, 2.0])}, gradient=lambda p: {"w": 0.5 / np.sqrt(p["w"])})
    assert not along(model).holds


def test_a_large_offset_leaves_it_open():
    assert along(layer(offset=1e6)).resolution > 1e-2
    assert gradaudit.audit(layer(offset=1e6)).verdict is Verdict.INCONCLUSIVE


def test_what_the_whole_model_condemns_is_not_cleared(monkeypatch):
    """Two tensors, each of which alone leaves it open: the paths clear them, not what both together show."""
    held = Along(holds=True, resolution=1e-3)
    monkeypatch.setattr(measurement, "along_paths", lambda *args: held)
    found = SimpleNamespace(
        source=SimpleNamespace(model=layer(), dtype="float32"),
        lines=(),
        verdicts={"w": Verdict.INCONCLUSIVE},
        resolutions={"w": 0.1},
        verdict=Verdict.DISAGREE,
        of=lambda name, entries=False: [SimpleNamespace(scale=1.0, analytic=1.0, numeric=1.0)],
        would_do=lambda resolution: True,
    )
    monkeypatch.setattr(measurement, "replace", lambda found, **changes: changes)
    after = measurement._over_paths(found, AuditOptions(), Budget(10_000, None))
    assert after["verdicts"] == {"w": Verdict.AGREE}
    assert after["verdict"] is Verdict.DISAGREE
    found.verdict = Verdict.INCONCLUSIVE
    assert measurement._over_paths(found, AuditOptions(), Budget(10_000, None))["verdict"] is Verdict.AGREE


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_what_ten_paths_exclude_would_have_been_seen_whatever_the_size(size):
    """An error in any direction of a small tensor, beside a gradient of equal entries: 99 % of looks see it."""
    rng = np.random.default_rng(size)
    v = rng.choice([-1.0, 1.0], (20_000, 10, size)) * rng.uniform(0.5, 1.5, (20_000, 10, size))
    sizes = np.linalg.norm(v, axis=2) / np.sqrt(size)
    quantile = 10 / excluded([1.0] * 10) ** 2
    for _ in range(10):
        error = rng.standard_normal(size)
        gaps = v @ (error / np.linalg.norm(error)) / sizes
        assert np.mean(np.sum(gaps**2, axis=1) < quantile) < 0.01
