"""The original case as a black box: nothing is declared, and the truncation is found, with its line."""

from __future__ import annotations

import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.cli.blind import black_box, run
from gradaudit.cli.demo import Case
from gradaudit.recurrent import none, tail


def case(truncation, n_steps=40):
    return Case(
        n_sequences=3, n_steps=n_steps, n_features=2, n_classes=2, dtype="float32", seed=0, truncation=truncation
    )


@pytest.mark.parametrize("k", [1, 5])
def test_the_truncation_is_found(backend, k):
    printed = []
    outcome = run(backend.name, case(tail(k)), echo=printed.append, progress=lambda name, n: None)
    assert outcome.reproduced
    (report,) = outcome.report.parts
    assert report.verdict is Verdict.DISAGREE
    (finding,) = report.findings
    assert (finding.code, finding.numbers["k"], finding.numbers["steps"]) == ("GA104", k, 40)
    assert finding.title.startswith(f"truncated in time, tail, k = {k}")
    assert set(finding.parameters) == {"x", "W", "b", "R"}
    if backend.name == "numpy":
        assert finding.confidence == "consistent"
        return
    assert finding.confidence == "proven"
    (blamed,) = (line for text in printed for line in text.splitlines() if line.startswith("  > "))
    assert any(word in blamed for word in ("detach()", "stop_gradient(h)", "pytensor.scan("))
    assert blamed.split()[1] in finding.title


def test_without_a_truncation_there_is_nothing_to_find(backend, tmp_path):
    model, _ = black_box(backend.name, case(none()), tmp_path)
    report = gradaudit.audit(model)
    assert report.verdict is Verdict.AGREE
    assert report.findings == ()


def test_nothing_found_is_not_reproduced():
    outcome = run("numpy", case(none()), echo=lambda text: None, progress=lambda name, n: None)
    assert not outcome.reproduced
