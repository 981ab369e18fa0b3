"""The gallery's page: every program has its row, and the counts are those of the rows. The rows themselves are compared
with what the programs give in tests/backends/test_gallery.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("docs_gallery_page", ROOT / "docs" / "gallery.py")
gallery = sys.modules["docs_gallery_page"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gallery)

PROGRAMS = gallery.programs()


def test_the_page_is_up_to_date():
    rows = gallery.written()
    assert sorted(rows) == sorted(program.name for program in PROGRAMS)
    assert gallery.INDEX.read_text() == gallery.page(rows), "run docs/gallery.py --write"


def test_a_row_says_what_the_program_says():
    for program in PROGRAMS:
        _, _, title, source, expected, *_ = gallery.written()[program.name].split("|")
        assert title.strip() == program.title.removesuffix(".")
        assert program.source in source
        assert expected.strip() == f"{program.verdict} {program.expected}".strip()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_is_short(program):
    text = program.path.read_text()
    assert len(text.splitlines()) < 40
    assert "EXPECTED = " in text
    assert program.title.endswith(".")


def test_there_is_enough_and_little_is_missed():
    wrong = [program for program in PROGRAMS if program.wrong]
    assert len(wrong) >= 40
    assert len({program.source for program in wrong} - {""}) >= 10
    assert len(PROGRAMS) - len(wrong) >= 15
    assert {program.framework for program in PROGRAMS} == set(gallery.FRAMEWORKS)


def test_the_counts_follow_the_rows():
    row = "| [a](torch/a.py) | t |  | DISAGREE GA101 | DISAGREE GA101 | proven | yes |"
    wrong_line = row.replace("[a](torch/a", "[b](torch/b").replace("yes", "no")
    unexplained = row.replace("GA101", "GA901").replace("yes", "")
    text = gallery.summary({"torch/a": row, "torch/b": wrong_line, "torch/c": unexplained})
    assert "3 wrong programs, 0 of them modelled on public reports; 0 look-alikes" in text
    assert "Code right: 2 of 3 (66.7 %); of the wrong programs 2 of 3 (66.7 %), of the look-alikes 0 of 0." in text
    assert "Line right: 1 of 2 (50.0 %) that have one." in text
