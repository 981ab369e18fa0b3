"""The site: `sphinx-build -W -b html docs OUT`. It imports no framework."""

from __future__ import annotations

import re
from importlib.metadata import version as installed
from pathlib import Path

from gradaudit.diagnose.table import RULES

project = "gradaudit"
author = "the gradaudit developers"
version = release = installed("gradaudit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gradaudit {release}"
default_role = "py:obj"
myst_heading_anchors = 3
autodoc_mock_imports = ["jax", "tensorflow", "torch"]  # the drop-ins stand in for what they import
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {name: name for name in ("Activation", "Gradients", "NamedArrays", "Scalar")}
napoleon_use_ivar = True

_MARKUP = re.compile(r"(``.*?``)|([|*])")
_ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
_PAGES = Path(__file__).resolve().parent.parent / "gradaudit" / "diagnose" / "pages"


def _demoted(markdown: str) -> str:
    """One level deeper, headings only: `#` in a block of code is a comment."""
    lines, fenced = [], False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines)


def _findings(app, docname, source):
    """Append all findings to the page of findings: what `gradaudit explain` prints, in the order of the codes."""
    if docname != "reference/findings":
        return
    rules = sorted(RULES, key=lambda rule: rule.code)
    rows = [f"| [{rule.code}](#{rule.code.lower()}) | {rule.title} |" for rule in rules]
    parts = [source[0], "\n".join(["| code | finding |", "|---|---|", *rows])]
    for rule in rules:
        page = _PAGES / f"{rule.code}.md"
        app.env.note_dependency(str(page))
        parts.append(f"({rule.code.lower()})=\n{_demoted(page.read_text(encoding='utf-8'))}")
    source[0] = "\n\n".join(parts) + "\n"


def _plain(app, what, name, obj, options, lines):  # noqa: ARG001  # sphinx calls it so
    """Docstrings are plain text with code in backticks: a star or a bar in them is no markup."""
    lines[:] = [_MARKUP.sub(lambda match: match[1] or f"\\{match[2]}", line) for line in lines]


def _short(app, what, name, obj, options, signature, returns):  # noqa: ARG001
    """Aliases by their names."""
    return tuple(text and _ALIAS.sub(r"\1", text) for text in (signature, returns))


def setup(app):
    app.connect("source-read", _findings)
    app.connect("autodoc-process-docstring", _plain, priority=100)  # before napoleon writes markup of its own
    app.connect("autodoc-process-signature", _short)
