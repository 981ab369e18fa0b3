"""What the docs show is what the code does: every page's examples run, and their output is the real one.

Pages that need a framework are run where it is tested; the ``cross`` environment runs them all.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from gradaudit.backends import registry
from tests import conftest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("docs_examples", ROOT / "docs" / "examples.py")
docs_examples = sys.modules["docs_examples"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docs_examples)

FRAMEWORKS = tuple(name for name in registry.names()[1:] if name in conftest.tested())


@pytest.mark.parametrize("page", [ROOT / "README.md", *docs_examples.pages()], ids=lambda page: page.stem)
def test_a_page_shows_the_real_output(page):
    assert docs_examples.check(page, frameworks=FRAMEWORKS) == []


def runs_here(page):
    """Whether the framework of a page's programs is tested in this environment; ``cross`` tests them all."""
    needs = {example.framework for example in docs_examples.examples(page.read_text())} - {None}
    return needs <= set(FRAMEWORKS)


RULE_PAGES = [page for page in sorted(docs_examples.PAGES.glob("*.md")) if runs_here(page)]


@pytest.mark.parametrize("page", RULE_PAGES, ids=lambda page: page.stem)
def test_the_wrong_program_has_its_code_and_the_look_alike_has_not(page):
    wrong, look_alike = docs_examples.examples(page.read_text())
    namespace = {}
    exec(wrong.code, namespace)
    assert namespace["report"].findings[0].code == page.stem
    exec(look_alike.code, namespace)
    assert page.stem not in [finding.code for finding in namespace["report"].findings]


def test_a_stale_output_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(3)\n```\n\n```text\n4\n```\n")
    assert docs_examples.check(page, frameworks=()) != []
    page.write_text("```python\nprint(3)\n```\n\n```text\n3\n```\n")
    assert docs_examples.check(page, frameworks=()) == []


def test_there_are_examples():
    assert len(docs_examples.pages()) >= 12
