"""Rules of installed packages: they run, they explain, and a bad one is named."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

import gradaudit
from gradaudit.diagnose import table
from gradaudit.diagnose.table import Rule
from gradaudit.errors import OptionError
from gradaudit.report import Finding
from tests.core.models import mlp, times

WAVY = np.linspace(0.5, 2, 24).reshape(4, 6)


def scaled_rows(evidence):
    names = [name for name in evidence.wrong() if name == "first"]
    if not names:
        return None
    return Finding(code="MY001", title="ours", confidence="consistent", sentence="It is ours.", parameters=tuple(names))


OURS = Rule("MY001", "ours", scaled_rows, page="# MY001: ours\n\nWhat we do.\n")
TAKEN = Rule("GA101", "not ours", scaled_rows)
BARE = Rule("MY002", "bare", lambda evidence: None)


@pytest.fixture
def register(monkeypatch):
    def register(*names):
        found = [EntryPoint(n.lower(), f"{__name__}:{n}", table.ENTRY_POINTS) for n in names]
        monkeypatch.setattr(table, "entry_points", lambda group: found if group == "gradaudit.rules" else [])
        table.entries.cache_clear()

    table.entries.cache_clear()
    yield register
    table.entries.cache_clear()


def codes(model):
    return [finding.code for finding in gradaudit.audit(model).findings]


def test_a_registered_rule_runs_before_unexplained(register):
    wrong = mlp(lambda g: g | {"first": g["first"] * WAVY})
    assert codes(wrong) == ["GA901"]
    register("OURS")
    assert codes(wrong) == ["MY001"]
    assert codes(mlp()) == []


def test_what_is_explained_already_is_not_asked_again(register):
    register("OURS")
    assert codes(mlp(times(0.5))) == ["GA301"]


def test_its_page(register):
    register("OURS", "BARE")
    assert table.page("MY001") == OURS.page
    assert table.page("MY002") == "# MY002: bare\n"


@pytest.mark.parametrize(("name", "words"), [("TAKEN", "GA101, which is taken"), ("WAVY", "a ndarray")])
def test_a_bad_one_is_named(register, name, words):
    register(name)
    with pytest.raises(OptionError, match=words):
        table.rules()


def test_two_of_one_code_are_refused(register):
    register("OURS", "OURS")
    with pytest.raises(OptionError, match="MY001, which is taken"):
        gradaudit.audit(mlp())


def test_nothing_is_registered_here():
    assert table.registered() == ()
