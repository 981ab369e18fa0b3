"""Reports: frozen, saved and read back, at most 100 columns."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

import gradaudit
from gradaudit import AuditReport, Verdict, load_report
from gradaudit.errors import ReportFormatError
from gradaudit.render.to_text import number
from tests.core.models import mlp, replaced, times

REPORTS = {
    "right": gradaudit.audit(mlp()),
    "entries": gradaudit.audit(mlp(), entries=True),
    "wrong": gradaudit.audit(
        mlp(times(2.0)), name="a model with a long name, so long that the headline must break in two"
    ),
    "missing": gradaudit.audit(mlp(replaced(bias=None)), truncation=gradaudit.tail(3)),
    "short": gradaudit.audit(mlp(), max_evaluations=3),
    "many": gradaudit.audit_all({"one": mlp(), "other": mlp(times(3.0, "first"))}),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_json_round_trip_loses_nothing(name, tmp_path):
    report = REPORTS[name]
    report.save(tmp_path / "report.json")
    again = load_report(tmp_path / "report.json")
    assert again.to_json() == report.to_json()
    assert str(again) == str(report)
    assert json.loads(report.to_json())["schema_version"] == 1
    for mine, theirs in zip(report.parameters, again.parameters, strict=True):
        assert mine == theirs or math.isnan(mine.ratio)
    assert again.options == report.options


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is no JSON"),
        ("[]", "the report has schema version None, this gradaudit reads 1"),
        ('{"schema_version": 99}', "the report has schema version 99, this gradaudit reads 1"),
        ('{"schema_version": 1}', "the report's fields do not fit"),
    ],
)
def test_unreadable_reports(text, message):
    with pytest.raises(ReportFormatError) as error:
        AuditReport.from_json(text)
    assert message in str(error.value)


@pytest.mark.parametrize("name", REPORTS)
def test_the_text_fits_and_says_the_verdict_first(name):
    text = str(REPORTS[name])
    assert max(map(len, text.splitlines())) <= 100
    assert text.startswith(str(REPORTS[name].verdict))
    assert "\x1b" not in text


def test_a_right_model_takes_three_lines():
    lines = str(REPORTS["right"]).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("AGREE   NumpyModel (numpy ")
    assert "3 parameter tensors; a relative error above" in lines[2]


def test_a_long_table_is_shortened_with_a_count():
    many = dataclasses.replace(REPORTS["wrong"], parameters=REPORTS["wrong"].parameters * 10)
    assert "... and 10 more, all in report.parameters" in str(many)


def test_lookup():
    report = REPORTS["entries"]
    assert report["bias"].name == "bias"
    assert report["bias"].numeric.shape == (6,)
    assert report["first"].numeric is None
    assert report["first"].analytic is None
    assert report["first"].bound is None
    assert report.seed == 0
    with pytest.raises(KeyError, match="no parameter 'x'; there are "):
        report["x"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.verdict = Verdict.AGREE


def test_versions_are_in_the_report():
    environment = REPORTS["right"].environment
    assert environment["numpy"] == np.__version__
    assert {"backend", "gradaudit", "python"} <= set(environment)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.5, "0.5"), (1e-9, "1.00e-09"), (123456.0, "1.23e+05"), (math.nan, "nan"), (math.inf, "inf")],
)
def test_numbers(value, text):
    assert number(value) == text
