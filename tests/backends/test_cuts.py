"""A cut in the middle of a program is named with its line and proven, on every backend that can list its cuts."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.protocols import SupportsCuts
from tests.backends import programs

N_STEPS = 12
START = {"w": np.linspace(0.3, 1.1, 8), "r": np.linspace(-0.7, 0.9, 8)}


def stopped(own, h):
    return own.stop(h)


def walk(own, p, stop):
    h = own.sin(p["w"])
    for _ in range(N_STEPS):
        h = own.sin(p["w"] + p["r"] * stop(own, h))
    return own.sum(h)


def program(factor=1.0, dtype="float64"):
    """Steps of ``h = sin(w + r h)``, each cut from the one before; a hidden factor makes the derivative wrong, too."""

    def loss(own, p):
        return walk(own, p, stopped) if factor == 1 else walk(own, spoilt(own, p, factor), stopped)

    def gradient(p):
        h = np.sin(p["w"])
        for _ in range(N_STEPS):
            before, inner = h, p["w"] + p["r"] * h
            h = np.sin(inner)
        return {"w": factor * np.cos(inner), "r": factor * np.cos(inner) * before}

    return programs.Program(loss, gradient, {n: p.astype(dtype) for n, p in START.items()})


def spoilt(own, p, factor):
    """The same values with ``factor`` times the derivative."""
    rule = own.with_slope(lambda own, x: 1.0 * x, lambda own, x: factor * own.ones_like(x))
    return {n: rule(x) for n, x in p.items()}


def can_list(backend):
    return isinstance(program().on(backend), SupportsCuts)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_cut_in_every_step(backend, dtype):
    report = gradaudit.audit(program(dtype=dtype).on(backend))
    assert report.verdict is Verdict.DISAGREE
    (found,) = report.findings
    if not can_list(backend):
        assert backend.name == "numpy"
        assert found.code == "GA901"
        return
    assert (found.code, found.confidence) == ("GA101", "proven"), str(report)
    place = place_of_stop(backend)
    assert re.search(rf"{place} in (\w+\.)?stop(ped)? \({N_STEPS} times\)", found.sentence), found.sentence
    assert "removed" in found.evidence
    assert 0.1 < found.numbers["removed"] < 2


def test_the_cut_is_accepted_and_nothing_else(backend):
    if not can_list(backend):
        with pytest.raises(gradaudit.errors.OptionError):
            gradaudit.audit(program().on(backend), intended=["stop*"])
        return
    report = gradaudit.audit(program().on(backend), intended=["stop*"])
    assert (report.verdict, report.judged) == (Verdict.AGREE, "frozen"), str(report)
    assert report.findings[0].code == "GA101"
    wrong = gradaudit.audit(program(1.01).on(backend), intended=["stop*"])
    assert wrong.verdict is Verdict.DISAGREE


def test_a_cut_is_not_blamed_for_a_wrong_rule(backend):
    codes = [finding.code for finding in gradaudit.audit(program(0.5).on(backend)).findings]
    assert "GA101" not in codes
    assert codes


def place_of_stop(backend):
    """The user's frame next to the framework: the word's own line, or the caller of a word that is the framework's."""
    word = getattr(type(programs.words(backend.name)), "stop", stopped)
    source, first = inspect.getsourcelines(word)
    line = first + next(i for i, text in enumerate(source) if "return" in text)
    return f"{'test_cuts' if word is stopped else 'programs'}\\.py:{line}"
