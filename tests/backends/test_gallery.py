"""The gallery: what gradaudit says of each wrong program, and of each that only looks wrong, is what its page says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests import conftest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("docs_gallery", ROOT / "docs" / "gallery.py")
gallery = sys.modules["docs_gallery"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gallery)

#: The backends of this run, by name: each program belongs to one.
PROGRAMS = gallery.programs(tuple(conftest.tested()))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name.replace("/", "-"))
def test_is_judged_and_explained_as_it_says(program):
    outcome = gallery.run(program)
    if program.misses:
        assert not outcome.right, "no miss any more: drop MISSES, and run docs/gallery.py --write"
        missed = program.misses.split(":")[0]
        assert outcome.code_right or outcome.code in missed
        assert outcome.verdict_right or f"the verdict is {outcome.report.verdict}" in missed
    else:
        assert outcome.right, str(outcome.report)
    assert gallery.written()[program.name] == outcome.row, "run docs/gallery.py --write"
