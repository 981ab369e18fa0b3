"""All tested backends in one process: the same losses and gradients, one report."""

from __future__ import annotations

import pytest

import gradaudit
from gradaudit import Verdict
from gradaudit.recurrent import none, tail
from gradaudit.testing.scenarios import seed_case
from tests import conftest


@pytest.mark.parametrize("truncation", [none(), tail(1), tail(100)], ids=str)
@pytest.mark.parametrize(("dtype", "loss", "gradient"), [("float32", 1e-6, 1e-5), ("float64", 1e-10, 1e-10)])
def test_losses_and_gradients_are_the_same_at_full_size(dtype, loss, gradient, truncation):
    from gradaudit.across import ports

    models = {name: seed_case(name, truncation, dtype=dtype).recurrent for name in ["numpy", *conftest.tested()]}
    for port in ports(models):
        assert port.loss_difference <= loss, port
        assert port.gradient_difference <= gradient, port


def test_one_table_for_all():
    names = ["numpy", *conftest.tested()]
    models = {name: seed_case(name, tail(1), n_sequences=4, n_steps=300).lifted for name in names}
    report = gradaudit.audit_all(models)
    assert report.verdict is Verdict.AGREE
    assert len({part.evaluations for part in report.parts}) == 1
    assert [part.environment["backend"] for part in report.parts] == list(models)
