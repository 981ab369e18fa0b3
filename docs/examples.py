"""Runs the examples of the docs and compares, or writes, their real output.

    python docs/examples.py [--write] [--frameworks torch,jax,tensorflow,pytensor] [PAGE ...]

The convention, for every page:

- The ``python`` blocks of a page run from top to bottom in one namespace. A block whose first line imports torch, jax,
  tensorflow or pytensor needs that framework; it is skipped unless ``--frameworks`` names it.
- A ``text`` block that follows a block directly is its output: what it printed, or else its ``report``.
- A ``console`` block holds one command, ``$ gradaudit ...``, and its output.

Seconds and versions may differ, and a number may differ by 5 %, or be below 1e-9 in both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGES = DOCS.parent / "gradaudit" / "diagnose" / "pages"
FRAMEWORKS = ("torch", "jax", "tensorflow", "pytensor")
_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```\n(?:\n?```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
_VOLATILE = re.compile(
    r"\d+\.\d+ s\b|(?<=numpy )\d[\w.+]*|(?<=torch )\d[\w.+]*|(?<=jax )\d[\w.+]*|(?<=tensorflow )\d[\w.+]*"
    r"|(?<=pytensor )\d[\w.+]*"
)


@dataclass(frozen=True, slots=True)
class Example:
    """One block of a page: its language, its code, the output written below it (None: none), where that stands."""

    language: str
    code: str
    output: str | None
    span: tuple[int, int]

    @property
    def framework(self) -> str | None:
        """The framework that the first line imports."""
        words = self.code.split("\n", 1)[0].replace(".", " ").split()
        return next((w for w in words[1:2] if words[0] in ("import", "from") and w in FRAMEWORKS), None)


def pages() -> list[Path]:
    """All pages that may hold examples."""
    return sorted([*DOCS.rglob("*.md"), *PAGES.glob("*.md")])


def examples(text: str) -> list[Example]:
    """The blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        language, code, output = match.groups()
        span = match.span(3) if output is not None else (match.end(), match.end())
        if language == "console":
            command, _, output = code.partition("\n")
            span = (match.start(2) + len(command) + 1, match.end(2))
            code = command
        found.append(Example(language, code, output, span))
    return found


def run(example: Example, namespace: dict[str, object]) -> str:
    """What an example prints, or its report."""
    if example.language == "console":
        words = shlex.split(example.code.removeprefix("$ "))
        program = [str(Path(sys.executable).with_name("gradaudit"))] if words[0] == "gradaudit" else words[:1]
        width = os.environ | {"COLUMNS": "80"}
        done = subprocess.run([*program, *words[1:]], capture_output=True, text=True, check=False, env=width)  # noqa: S603
        return f"{done.stdout.strip(chr(10))}\n"
    namespace.pop("report", None)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example.code, "<example>", "exec"), namespace)  # noqa: S102
    return printed.getvalue() or (f"{namespace['report']}\n" if "report" in namespace else "")


def same(one: str, other: str) -> bool:
    """Equal but for seconds, versions, spacing and the last digits."""
    ours, theirs = (_VOLATILE.sub("_", text).split() for text in (one, other))
    return len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        left, right = (float(word.strip("(),.;:[]").replace(",", "")) for word in (one, other))
    except ValueError:
        return False
    return math.isclose(left, right, rel_tol=0.05, abs_tol=1e-9)


def check(page: Path, *, frameworks: tuple[str, ...] = (), write: bool = False) -> list[str]:
    """Run a page; the differences found (or written)."""
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__example__"}
    differences, changes = [], []
    for example in examples(text):
        if example.framework is not None and example.framework not in frameworks:
            continue
        output = run(example, namespace)
        if example.output is not None and not same(output, example.output):
            differences.append(f"{page}: {example.code}\nwritten:\n{example.output}\nreal:\n{output}")
            changes.append((example.span, output))
    if write and changes:
        for (start, stop), output in reversed(changes):
            text = text[:start] + output + text[stop:]
        page.write_text(text, encoding="utf-8")
    return differences


def main() -> int:
    """Check or write all pages, or those named."""
    parser = argparse.ArgumentParser(description="Run the examples of the docs.")
    parser.add_argument("--write", action="store_true", help="write the real output into the pages")
    parser.add_argument("--frameworks", default="", help="run the examples that need these, too")
    parser.add_argument("pages", nargs="*", type=Path)
    arguments = parser.parse_args()
    frameworks = tuple(name for name in arguments.frameworks.split(",") if name)
    differences = []
    for page in arguments.pages or pages():
        differences += check(page, frameworks=frameworks, write=arguments.write)
    sys.stdout.write("\n".join(differences) + "\n" if differences else "all examples print what the docs say\n")
    return 1 if differences and not arguments.write else 0


if __name__ == "__main__":
    sys.exit(main())
