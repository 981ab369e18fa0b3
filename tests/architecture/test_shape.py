"""Files one can read in one sitting, a page for every code, extras that match the table of backends."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from gradaudit.backends import registry
from gradaudit.diagnose.table import RULES, page

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "gradaudit").rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 350
    for function in functions(path):
        doc = ast.get_docstring(function, clean=False) or ""
        length = function.end_lineno - function.lineno + 1 - len(doc.splitlines())
        assert length <= 60, f"{function.name} has {length} lines"


def test_functions_are_short():
    lengths = sorted(f.end_lineno - f.lineno + 1 for path in FILES for f in functions(path))
    assert lengths[int(0.9 * len(lengths))] <= 35


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_module_says_what_it_is_and_what_is_public(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    names = {
        n.id for node in tree.body if isinstance(node, ast.Assign) for n in node.targets if isinstance(n, ast.Name)
    }
    defines = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    assert not defines or "__all__" in names


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_code_has_its_page(rule):
    text = page(rule.code)
    assert text.startswith(f"# {rule.code}: {rule.title}\n")
    assert "```python" in text


def test_codes_are_unique_and_every_page_has_its_code():
    codes = [rule.code for rule in RULES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"GA[1-9]\d\d", code) for code in codes)
    pages = sorted(path.stem for path in (ROOT / "gradaudit" / "diagnose" / "pages").glob("*.md"))
    assert pages == sorted(codes)


def test_extras_and_the_table_of_backends_are_aligned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for spec in registry.BACKENDS[1:]:
        (requirement,) = project["optional-dependencies"][spec.name]
        assert requirement == f"{spec.distributions[0]}>={'.'.join(map(str, spec.minimum))}"
    assert f"numpy>={'.'.join(map(str, registry.BACKENDS[0].minimum))}" in project["dependencies"]
    assert sorted(d.split(">=")[0] for d in project["dependencies"]) == ["numpy", "typing-extensions"]


def test_every_backend_has_its_folder_tox_environment_and_row():
    folders = {p.name for p in (ROOT / "gradaudit" / "backends").iterdir() if (p / "__init__.py").exists()}
    assert folders == set(registry.names())
    tox = (ROOT / "tox.ini").read_text()
    readme = (ROOT / "README.md").read_text()
    for name in registry.names():
        assert f"[testenv:{name}]" in tox or f"{name}:" in tox
        assert f"| {name} |" in readme
