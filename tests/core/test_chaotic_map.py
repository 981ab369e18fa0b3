"""What decision 0014 says of chaotic maps, from the script that measures it."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("chaotic_map")


def test_float64_losses_resolve_thirty_steps_but_not_a_hundred_and_twenty(script):
    _, best = script.best_differences(30)
    assert min(best.values()) < 1e-9
    _, best = script.best_differences(120)
    assert min(best.values()) > 1e-3


def test_float32_rounding_is_as_large_as_the_error(script):
    by_form = [abs(script.rounding(0, form)[0]) for form in script.FORMS]
    assert max(by_form) > 5e-4
    assert min(by_form) < 1e-4
    for seed in range(8):
        _, nearby, left, *_ = script.rounding(seed, "(r x) (1 - x)")
        assert nearby > 5e-4
        assert nearby > 20 * left


def test_a_combination_of_right_entries_is_off_by_many_standard_errors(script):
    with np.errstate(all="ignore"):
        assert max(script.recurrent(seed) for seed in range(20)) > 100


def test_a_broken_relation_has_no_owner(script):
    """The error is in dL/dr alone, and shows in dL/dx as well."""
    for seed in range(8):
        assert script.beside_the_others(seed, 0.0).max() < 5
        off = script.beside_the_others(seed, 1e-3)
        assert off[-1] > 12
        assert (off[:-1] > 5).sum() >= 3
