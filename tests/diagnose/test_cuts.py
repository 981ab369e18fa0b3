"""Cuts by experiment: listed, removed, held; the wrong line is never blamed."""

from __future__ import annotations

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.arrays import global_norm
from gradaudit.recurrent import chunks, none, tail, window
from gradaudit.sites import Cut
from tests.core.test_by_step import Rnn

X = np.random.default_rng(0).uniform(0.5, 1.5, 30)


def cut(line, **options):
    return Cut(kind="detach", path="/home/me/model.py", line=line, function="forward", **options)


class Product:
    """The sum of ``sin(x) exp(x / 2) / (1 + x^2)``; the gradient leaves out the factors that are cut.

    The factor at position i is written in line i + 1. A fault is what else is done to the gradient.
    """

    def __init__(self, cuts, *, fault=None, held=None):
        self.listed, self.fault, self.held = tuple(cuts), fault, dict(held or {})
        self.removed = frozenset()

    def parameters(self):
        return {"x": X}

    def factors(self, x):
        return [np.sin(x), np.exp(x / 2), 1 / (1 + x * x)]

    def slopes(self, x):
        return [np.cos(x), np.exp(x / 2) / 2, -2 * x / (1 + x * x) ** 2]

    def loss(self, p):
        return np.prod([self.held.get(i, f) for i, f in enumerate(self.factors(p["x"]))], axis=0).sum()

    def value_and_grad(self, p):
        factors, slopes = self.factors(p["x"]), self.slopes(p["x"])
        total = np.zeros_like(p["x"])
        for i in range(3):
            if not any(c.line == i + 1 for c in self.listed if c not in self.removed) and i not in self.held:
                total += slopes[i] * np.prod([self.held.get(j, f) for j, f in enumerate(factors) if j != i], axis=0)
        return self.loss(p), {"x": total if self.fault is None else self.fault(total)}

    def cuts(self):
        return self.listed

    def without(self, cuts):
        if not all(c.removable for c in cuts):
            return None
        other = Product(self.listed, fault=self.fault, held=self.held)
        other.removed = frozenset(cuts)
        return other

    def holding(self, cuts):
        base = self.factors(X)
        return Product(self.listed, fault=self.fault, held={c.line - 1: base[c.line - 1] for c in cuts if c.line < 4})


def finding(model, **options):
    report = gradaudit.audit(model, **options)
    assert report.verdict is Verdict.DISAGREE
    return report.findings[0]


def test_the_cut_is_named_with_its_line():
    found = finding(Product([cut(2, executions=999), cut(9)]))
    assert found.code == "GA101"
    assert found.confidence == "proven"
    assert found.title == "cut at model.py:2"
    assert "detach at model.py:2 in forward (999 times)" in found.sentence
    assert "model.py:9" not in found.sentence
    x = X
    full = np.cos(x) * np.exp(x / 2) / (1 + x**2) + np.sin(x) * np.exp(x / 2) * (0.5 - 2 * x / (1 + x**2)) / (1 + x**2)
    part = np.sin(x) * np.exp(x / 2) / 2 / (1 + x**2)
    assert found.numbers["removed"] == pytest.approx(np.linalg.norm(part) / np.linalg.norm(full), rel=1e-12)


def test_two_lines_share_the_gap():
    found = finding(Product([cut(1), cut(9), cut(3)]))
    assert found.code == "GA101"
    assert "2 cuts share the gap" in found.sentence
    assert {"model.py:1", "model.py:3"} <= set(found.title.removeprefix("cut at ").split(", "))
    assert "model.py:9" not in found.title


def test_what_cannot_be_removed_is_held():
    found = finding(Product([cut(9, removable=False), cut(3, removable=False)]))
    assert (found.code, found.confidence, found.title) == ("GA101", "proven", "cut at model.py:3")
    assert "held at the base point" in found.evidence


def test_two_that_cannot_be_removed_are_held_together():
    found = finding(Product([cut(1, removable=False), cut(3, removable=False)]))
    assert found.title == "cut at model.py:1, model.py:3"


@pytest.mark.parametrize("removable", [True, False])
def test_a_cut_is_not_blamed_for_another_fault(removable):
    """Half the gradient is an error whatever is cut."""
    found = finding(Product([cut(2, removable=removable)], fault=lambda g: 0.5 * g))
    assert found.code != "GA101"
    assert finding(Product([cut(9, removable=removable)], fault=lambda g: 0.5 * g)).code == "GA301"


def test_the_users_own_cuts_come_before_those_of_libraries():
    found = finding(Product([cut(2, library=True)]))
    assert (found.code, found.title) == ("GA101", "cut at model.py:2")
    both = Product([cut(9, library=True), cut(2)])
    assert finding(both).title == "cut at model.py:2"


def test_what_was_seen_and_explains_nothing_is_said():
    found = finding(Product([cut(9), cut(8, library=True)], fault=lambda g: g * np.linspace(0.5, 2, 30)))
    assert found.code == "GA901"
    assert "Seen, and not shown to explain it: detach at model.py:9 in forward." in found.sentence


def test_a_right_gradient_lists_nothing():
    report = gradaudit.audit(Product([cut(9)]))
    assert report.verdict is Verdict.AGREE
    assert report.findings == ()


def test_a_listing_that_fails_leaves_the_verdict(monkeypatch):
    def broken(self):
        raise RuntimeError

    monkeypatch.setattr(Product, "cuts", broken)
    assert finding(Product([cut(2)])).code != "GA101"


def test_an_intended_cut_is_judged_as_such():
    model = Product([cut(2), cut(9)])
    for glob in ("model.py:2", "*/me/model.py:2", "model.py:*", "forward"):
        report = gradaudit.audit(model, intended=[glob])
        assert report.verdict is Verdict.AGREE, str(report)
        assert report.judged == "frozen"
        (found,) = report.findings
        assert (found.code, found.remedy.split(";")[0]) == ("GA101", "You mean this cut")
        assert found.numbers["removed"] > 0.1
        assert "given its cuts" in str(report)
        assert gradaudit.AuditReport.from_json(report.to_json()).options == report.options


def test_an_intended_cut_is_no_licence_for_another_fault():
    report = gradaudit.audit(Product([cut(2)], fault=lambda g: 1.01 * g), intended=["model.py:2"])
    assert report.verdict is Verdict.DISAGREE


def test_an_intended_cut_that_is_not_there_is_an_error():
    with pytest.raises(gradaudit.errors.OptionError, match=r"model\.py:7.*detach at model\.py:2 in forward"):
        gradaudit.audit(Product([cut(2)]), intended=["model.py:7"])
    with pytest.raises(gradaudit.errors.OptionError, match="none that are listed"):
        gradaudit.audit(Product([]), intended=["model.py:7"])
    with pytest.raises(gradaudit.errors.OptionError, match="must be globs"):
        gradaudit.AuditOptions(intended=[57])
    assert gradaudit.AuditOptions(intended="model.py:7") == gradaudit.AuditOptions(intended=["model.py:7"])


class Refusing(Product):
    """Nothing runs without its cuts."""

    def without(self, cuts):
        return None

    def holding(self, cuts):
        return None


@pytest.mark.parametrize("refuses", [False, True])
def test_a_pattern_is_told_with_the_lines_that_could_not_be_tried(refuses):
    """A line that is harmless, and can be removed, is not: the pattern stands without it."""
    lines = [cut(9), cut(10, removable=False), cut(11, library=True)]
    report = gradaudit.audit((Refusing if refuses else Product)(lines, fault=lambda g: 2 * g))
    (finding,) = report.findings
    assert finding.code == "GA301"
    assert ("since nothing runs without it: detach at model.py:9 in forward." in finding.sentence) is refuses
    assert ("model.py" in finding.sentence) is refuses


class CutInTime(Rnn):
    """A recurrent program that declares nothing, and whose line can be found and removed."""

    def cuts(self):
        return (cut(57, executions=3),)

    def without(self, cuts):
        return Rnn(none())

    def holding(self, cuts):
        return None


@pytest.mark.parametrize("truncation", [tail(4), chunks(4), window(3)], ids=str)
def test_a_truncation_that_nobody_declared_has_a_bias_and_a_way_to_accept_it(truncation):
    model = CutInTime(truncation)
    (finding,) = gradaudit.audit(model).findings
    kept, full = (m.value_and_grad(m.parameters())[1] for m in (model, Rnn(none())))
    bias = global_norm({name: kept[name] - full[name] for name in full}) / global_norm(full)
    assert (finding.code, finding.confidence, finding.numbers["k"]) == ("GA104", "proven", truncation.k)
    assert finding.numbers["bias"] == pytest.approx(bias)
    assert finding.numbers["norm_ratio"] == pytest.approx(global_norm(kept) / global_norm(full))
    assert f"its bias is {100 * bias:.2f} %" in finding.sentence
    assert 'pass intended=["model.py:57"]' in finding.remedy


def test_a_bias_that_nobody_knows_is_not_said():
    (finding,) = gradaudit.audit(Rnn(chunks(4))).findings
    assert (finding.code, finding.confidence) == ("GA104", "consistent")
    assert "bias is" not in finding.sentence
    assert "bias" not in finding.numbers
    assert "intended" not in finding.remedy


def test_an_accepted_truncation_that_is_not_declared_is_not_ignored_in_silence():
    for model in (CutInTime(chunks(4)), Rnn(none())):
        report = gradaudit.audit(model, truncation=chunks(4))
        (remark,) = report.remarks
        assert remark.startswith(
            "truncation=chunks(4) was not used: this model declares no truncation; to accept lines"
        )
        assert "was not used: this model declares no truncation" in str(report).replace("\n  ", " ")
        assert gradaudit.audit(model).remarks == ()
