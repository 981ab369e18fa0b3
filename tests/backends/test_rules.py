"""A wrong hand-written derivative among right ones is named and proven, on every backend that can list its rules."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.protocols import SupportsRules
from tests.backends import programs

N_LAYERS, WRONG = 6, 3
START = {f"W{i}": 0.8 * np.random.default_rng(i).standard_normal((4, 4)) for i in range(1, N_LAYERS + 1)}
INPUTS = np.random.default_rng(99).standard_normal((5, 4))


def right(own, x, g):
    return g * (1 - own.tanh(x) ** 2)


def wrong(own, x, g):
    return g * (1 - own.tanh(x) ** 3)


def network(rules, dtype="float64"):
    """Layers ``h = tanh(h W)``, each tanh with a rule of its own."""

    def loss(own, p):
        h = own.constant(INPUTS, p["W1"])
        for i in range(1, N_LAYERS + 1):
            h = own.with_vjp(lambda own, x: own.tanh(x), rules(i))(h @ p[f"W{i}"])
        return own.sum(h * h)

    def gradient(p):
        own, h, inner, outer = programs.words("numpy"), INPUTS.astype(dtype), {}, {}
        for i in range(1, N_LAYERS + 1):
            outer[i], inner[i] = h, h @ p[f"W{i}"]
            h = np.tanh(inner[i])
        back, found = 2 * h, {}
        for i in range(N_LAYERS, 0, -1):
            back = rules(i)(own, inner[i], back)
            found[f"W{i}"] = outer[i].T @ back
            back = back @ p[f"W{i}"].T
        return found

    return programs.Program(loss, gradient, {n: w.astype(dtype) for n, w in START.items()})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_third_of_six_layers(backend, dtype):
    model = network(lambda i: wrong if i == WRONG else right, dtype).on(backend)
    report = gradaudit.audit(model)
    assert report.verdict is Verdict.DISAGREE
    verdicts = {name: report[name].verdict for name in START}
    assert {n for n, v in verdicts.items() if v is Verdict.DISAGREE} == {f"W{i}" for i in range(1, WRONG + 1)}
    (found,) = report.findings
    if not isinstance(model, SupportsRules):
        assert backend.name in programs.UNLISTED
        assert found.code == "GA901"
        return
    assert (found.code, found.confidence) == ("GA501", "proven"), str(report)
    assert set(found.parameters) == {"W1", "W2", "W3"}
    assert "programs.py:" in found.title
    assert found.title.count("programs.py") == 1
    assert 0.1 < found.numbers["error"] < 2


def test_right_rules_say_nothing(backend):
    model = network(lambda i: right).on(backend)
    report = gradaudit.audit(model)
    assert report.verdict is Verdict.AGREE
    assert report.findings == ()
    if isinstance(model, SupportsRules):
        assert [rule.error < 1e-9 for rule in model.rules()] == [True] * len(model.rules())
        assert sum(rule.executions for rule in model.rules()) == N_LAYERS
