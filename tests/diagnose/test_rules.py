"""Hand-written derivatives by experiment: compared, replaced; the right one is never blamed. And where NaN begins."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.sites import CustomRule, Origin

X = np.random.default_rng(0).uniform(0.5, 1.5, 30)


def rule(name, error, **options):
    line = {"sin": 10, "exp": 20, "square": 30}[name]
    return CustomRule(
        kind="autograd.Function", name=name, path="/home/me/ops.py", line=line, error=error, argument=0, **options
    )


class Chain:
    """The sum of ``exp(sin(x^2))``; the rules in ``wrong`` have the derivative times a factor.

    A fault is what else is done to the gradient.
    """

    def __init__(self, wrong, listed, *, fault=None, replaces=True):
        self.wrong, self.listed, self.fault, self.replaces = dict(wrong), tuple(listed), fault, replaces

    def parameters(self):
        return {"x": X}

    def loss(self, p):
        return np.exp(np.sin(p["x"] ** 2)).sum()

    def value_and_grad(self, p):
        x = p["x"]
        slopes = {"square": 2 * x, "sin": np.cos(x**2), "exp": np.exp(np.sin(x**2))}
        g = np.prod([self.wrong.get(name, 1.0) * slope for name, slope in slopes.items()], axis=0)
        return self.loss(p), {"x": g if self.fault is None else self.fault(g)}

    def rules(self):
        return self.listed

    def replacing(self, rules):
        if not self.replaces:
            return None
        names = {r.name for r in rules}
        return Chain({n: f for n, f in self.wrong.items() if n not in names}, self.listed, fault=self.fault)


WAVY = 1 + 0.3 * np.sin(np.arange(30))


def finding(model):
    report = gradaudit.audit(model)
    assert report.verdict is Verdict.DISAGREE
    return report.findings[0]


def test_the_wrong_rule_is_named_with_its_line():
    found = finding(Chain({"sin": WAVY}, [rule("square", 1e-16), rule("sin", 0.2, executions=6), rule("exp", 0.0)]))
    assert (found.code, found.confidence) == ("GA501", "proven")
    assert found.title == "wrong backward of sin at ops.py:10"
    assert "The rule of autograd.Function sin at ops.py:10 (run 6 times) is off by 0.2, relative, in input 0." in (
        found.sentence
    )
    assert "square" not in found.sentence
    assert found.numbers == {"error": 0.2}


def test_two_wrong_rules_share_the_gap():
    found = finding(Chain({"sin": WAVY, "exp": 2.0}, [rule("sin", 0.2), rule("exp", 1.0), rule("square", 0.0)]))
    assert (found.code, found.confidence) == ("GA501", "proven")
    assert set(found.title.removeprefix("wrong backward of ").split(", ")) == {"sin at ops.py:10", "exp at ops.py:20"}


def test_a_rule_that_cannot_be_compared_is_tried():
    found = finding(Chain({"exp": WAVY}, [rule("sin", 0.0), rule("exp", float("nan"))]))
    assert (found.code, found.confidence) == ("GA501", "proven")
    assert "The rule of autograd.Function exp at ops.py:20 (run once) is not its derivative." in found.sentence


def test_a_wrong_rule_that_cannot_be_replaced_is_consistent():
    found = finding(Chain({"sin": WAVY}, [rule("sin", 0.2), rule("exp", 0.0)], replaces=False))
    assert (found.code, found.confidence) == ("GA501", "consistent")
    assert found.title == "wrong backward of sin at ops.py:10"


@pytest.mark.parametrize("replaces", [True, False])
def test_right_rules_are_not_blamed_for_another_fault(replaces):
    listed = [rule("sin", 1e-12), rule("exp", 3e-9)]
    assert finding(Chain({}, listed, fault=lambda g: 0.5 * g, replaces=replaces)).code == "GA301"


def test_a_wrong_rule_beside_another_fault_is_not_proven():
    found = finding(Chain({"sin": 1.2}, [rule("sin", 0.2)], fault=lambda g: WAVY * g))
    assert (found.code, found.confidence) == ("GA501", "consistent")
    assert "That alone does not explain the gap." in found.evidence


def test_a_librarys_rule_can_be_wrong_too():
    found = finding(Chain({"sin": WAVY}, [rule("exp", 0.0), rule("sin", 0.2, library=True)]))
    assert (found.code, found.title) == ("GA501", "wrong backward of sin at ops.py:10")


def test_a_right_gradient_asks_for_no_rules(monkeypatch):
    def fails(self):
        raise AssertionError

    monkeypatch.setattr(Chain, "rules", fails)
    report = gradaudit.audit(Chain({}, []))
    assert report.verdict is Verdict.AGREE
    assert report.findings == ()


def test_a_comparison_that_fails_leaves_the_verdict(monkeypatch):
    def fails(self):
        raise RuntimeError

    monkeypatch.setattr(Chain, "rules", fails)
    assert finding(Chain({"sin": WAVY}, [])).code != "GA501"


class Trap:
    """A branch that is not selected, whose slope is infinite at 0."""

    def __init__(self, origin):
        self.found = origin

    def parameters(self):
        return {"x": np.array([0.0, 2.0, 3.0])}

    def loss(self, p):
        return np.where(p["x"] > 1, np.sqrt(np.abs(p["x"])), p["x"]).sum()

    def value_and_grad(self, p):
        slope = np.where(p["x"] > 1, 0.5 / np.sqrt(np.maximum(p["x"], 1e-300)), 1.0)
        return self.loss(p), {"x": np.where(p["x"] == 0, np.nan, slope)}

    def origin(self):
        return self.found


@pytest.mark.parametrize("forward", [False, True])
def test_the_line_where_a_gradient_stops_being_finite(forward):
    origin = Origin(operation="sqrt", path="/home/me/model.py", line=57, function="loss", forward=forward)
    found = finding(Trap(origin))
    assert (found.code, found.confidence) == ("GA604", "proven")
    assert found.title == "gradient not finite, from sqrt at model.py:57"
    assert "in the backward pass of sqrt at model.py:57 in loss" in found.sentence
    assert ("whose own value is not finite there" in found.sentence) == forward


def test_without_an_origin_the_finding_stays():
    found = finding(Trap(None))
    assert (found.code, found.confidence, found.title) == ("GA604", "consistent", "gradient not finite")


def test_an_origin_that_fails_leaves_the_finding(monkeypatch):
    def fails(self):
        raise RuntimeError

    monkeypatch.setattr(Trap, "origin", fails)
    assert finding(Trap(None)).code == "GA604"
