"""What the docs show is what the code does: examples run, and the README's output is the real one."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from gradaudit.backends import registry
from tests import conftest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = registry.names()[1:]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "gradaudit" / "diagnose" / "pages").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]


def blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def needs(block):
    return {name for name in FRAMEWORKS if re.search(rf"^import {name}\b|^from {name}\b", block, flags=re.MULTILINE)}


EXAMPLES = [(path, i, block) for path in PAGES for i, block in enumerate(blocks(path))]
RUNNABLE = [example for example in EXAMPLES if needs(example[2]) <= set(conftest.tested())]


def output_of(block):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "<example>", "exec"), {"__name__": "example"})
    return printed.getvalue()


@pytest.mark.parametrize(
    "block", [b for *_, b in RUNNABLE], ids=[f"{path.relative_to(ROOT)}-{i}" for path, i, _ in RUNNABLE]
)
def test_an_example_runs(block):
    output_of(block)


def test_the_readme_shows_the_real_output():
    text = (ROOT / "README.md").read_text()
    (example,) = blocks(ROOT / "README.md")
    shown = re.search(r"^```\n(DISAGREE.*?)^```", text, flags=re.MULTILINE | re.DOTALL).group(1)

    def comparable(output):
        output = re.sub(r"\d+\.\d+ s$", "SECONDS", output, flags=re.MULTILINE)
        output = re.sub(r"1\.\d\de-15|[2-9]\.\d\de-1[56]|0(?=      1  )", "ROUNDING", output)
        return re.sub(r"numpy \d+\.\d+\.\d+", "numpy VERSION", output).split()

    assert comparable(output_of(example)) == comparable(shown)


def test_there_are_examples():
    assert len(EXAMPLES) > len(PAGES) - 3
    assert RUNNABLE
