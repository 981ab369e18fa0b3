"""Runs the gallery of wrong and right programs, and shows or writes the table of what gradaudit says of each.

    python docs/gallery.py [--write] [--reports] [--frameworks numpy,torch,jax,tensorflow,pytensor] [NAME ...]

The convention, for every program ``docs/gallery/FRAMEWORK/NAME.py``:

- Its docstring says in one line what is wrong, or what only looks wrong; a line "Modelled on URL." names the report.
- ``model`` is what is audited, with ``OPTIONS`` (default: none).
- ``EXPECTED`` is the code of the finding that should come first, or "" where nothing should be found.
- ``# <- here`` marks the line, or lines, that the finding should name. Where a gradient is written by hand, nothing
  that runs tells its lines: there is no mark.
- ``VERDICT`` is the right one, where it does not follow from the code.
- ``MISSES``, if it is there, says what is reported instead, and why: verdict, code or line are not right yet.

GA901, "unexplained", is never right: where no finding has the cause, it is expected, and a miss.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import gradaudit
from gradaudit import AuditReport, Finding, Verdict

GALLERY = Path(__file__).resolve().parent / "gallery"
INDEX = GALLERY / "index.md"
FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow", "pytensor")
TITLES = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow", "pytensor": "PyTensor"}
#: The verdict that belongs to a code; DISAGREE to all others.
OPEN = ("GA602", "GA701", "GA704", "GA801")
VERDICTS = {"": "AGREE", "GA601": "AGREE", **dict.fromkeys(OPEN, "INCONCLUSIVE")}
UNEXPLAINED = "GA901"
#: What may be said of the point or of the loss before the cause of a wrong gradient.
NOTES = ("GA601", "GA602", "GA702", "GA801")
INTRODUCTION = """\
Wrong programs, each under 40 lines, with what should be said of them and what gradaudit says; and correct ones that
look wrong: they agree, or are judged given the cuts that their author means. `python docs/gallery.py --write` runs
them all and writes this page.

Expected and reported are the verdict and the code of the first finding; where the gradient is wrong, of the first
that is a cause (a kink, or random numbers that had to be held, are said before). `line` tells whether that finding
names exactly the lines that are marked `# <- here` in the program; where a gradient is written by hand, nothing that
runs tells its lines, and none is asked for. [GA901](../reference/findings.md), "unexplained", never counts as right."""
HEAD = """\
| program | what is wrong | report | expected | reported | confidence | line |
|---|---|---|---|---|---|---|"""
_MARK = "# <- here"
_SOURCE = re.compile(r"^Modelled on (\S+?)\.?$", re.MULTILINE)
_PLACE = re.compile(r"([\w.]+\.py):(\d+)")
_ROW = re.compile(r"^\| \[\w+\]\((\w+/\w+)\.py\) \|.*\|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Program:
    """One program, read but not run.

    Attributes:
        path: of its file.
        title: the first line of its docstring.
        source: the address of the public report; "" where there is none.
        expected: the code, "" for none.
        marked: the lines that the finding should name.
        verdict: AGREE, DISAGREE or INCONCLUSIVE.
        misses: what is reported instead, and why.
    """

    path: Path
    title: str
    source: str
    expected: str
    marked: frozenset[int]
    verdict: str
    misses: str

    @property
    def framework(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        """``torch/detached_state``."""
        return f"{self.framework}/{self.path.stem}"

    @property
    def wrong(self) -> bool:
        """A wrong program, no look-alike."""
        return self.verdict != "AGREE"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What gradaudit says of a program."""

    program: Program
    report: AuditReport

    @property
    def finding(self) -> Finding | None:
        """The first one; of a wrong gradient the first that is a cause."""
        causes = [finding for finding in self.report.findings if finding.code not in NOTES]
        chosen = causes if self.report.verdict is Verdict.DISAGREE else self.report.findings
        return next(iter(chosen or self.report.findings), None)

    @property
    def code(self) -> str:
        return self.finding.code if self.finding else ""

    @property
    def lines(self) -> frozenset[int]:
        """The lines of the program that the finding names, in its title or else in its sentence."""
        named = self.finding is not None and self.code != UNEXPLAINED
        for text in (self.finding.title, self.finding.sentence) if named else ():
            found = frozenset(int(n) for name, n in _PLACE.findall(text) if name == self.program.path.name)
            if found:
                return found
        return frozenset()

    @property
    def verdict_right(self) -> bool:
        return str(self.report.verdict) == self.program.verdict

    @property
    def code_right(self) -> bool:
        return self.code == self.program.expected != UNEXPLAINED

    @property
    def line_right(self) -> bool:
        """Without a mark no line is asked."""
        return not self.program.marked or self.lines == self.program.marked

    @property
    def right(self) -> bool:
        return self.verdict_right and self.code_right and self.line_right

    @property
    def row(self) -> str:
        """Of the table."""
        program = self.program
        words = program.source.removeprefix("https://github.com/").split("/")
        cells = (
            f"[{program.path.stem}]({program.name}.py)",
            program.title.removesuffix("."),
            f"[{words[0]}/{words[1]}#{words[3]}]({program.source})" if program.source else "",
            f"{program.verdict} {program.expected}".strip(),
            f"{self.report.verdict} {self.code}".strip(),
            self.finding.confidence if self.finding else "",
            ("yes" if self.line_right else "no") if program.marked else "",
        )
        return f"| {' | '.join(cells)} |"


def programs(frameworks: tuple[str, ...] = FRAMEWORKS) -> list[Program]:
    """All programs of these frameworks, in the order of their names."""
    return [read(path) for framework in frameworks for path in sorted((GALLERY / framework).glob("*.py"))]


def read(path: Path) -> Program:
    """What a file says of itself."""
    text = path.read_text(encoding="utf-8")
    source, expected = _SOURCE.search(text), _constant(text, "EXPECTED")
    follows = "AGREE" if "intended" in text.partition("\nOPTIONS")[2] else VERDICTS.get(expected, "DISAGREE")
    return Program(
        path=path,
        title=text.split('"""')[1].split("\n", 1)[0],
        source=source[1] if source else "",
        expected=expected,
        marked=frozenset(n for n, line in enumerate(text.splitlines(), 1) if line.endswith(_MARK)),
        verdict=_constant(text, "VERDICT") or follows,
        misses=_constant(text, "MISSES"),
    )


def _constant(text: str, name: str) -> str:
    found = re.search(rf'^{name} = "(.*?)"', text, re.MULTILINE)
    return found[1] if found else ""


def run(program: Program) -> Outcome:
    """Execute a program and audit its model. Warnings of what is wrong on purpose are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = _executed(program)
        return Outcome(program, gradaudit.audit(module.model, **getattr(module, "OPTIONS", {})))


def _executed(program: Program) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gallery_{program.framework}_{program.path.stem}", program.path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written() -> dict[str, str]:
    """The rows of the page, by program."""
    text = INDEX.read_text(encoding="utf-8") if INDEX.exists() else ""
    return {match[1]: match[0] for match in _ROW.finditer(text)}


def summary(rows: dict[str, str]) -> str:
    """The counts, from the rows alone."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.values()]
    wrong = [c for c in cells if not c[3].startswith("AGREE")]
    reports = sum(bool(c[2]) for c in wrong)
    asked = [c for c in cells if c[6]]
    verdicts = sum(c[3].split()[0] == c[4].split()[0] for c in cells)
    codes = sum(c[3] == c[4] and UNEXPLAINED not in c[4] for c in cells)
    lines = sum(c[6] == "yes" for c in asked)
    alike = [c for c in cells if c not in wrong]
    silent = sum(c[3] == c[4] for c in alike)
    caused = codes - silent
    return (
        f"- {len(wrong)} wrong programs, {reports} of them modelled on public reports; {len(alike)} look-alikes.\n"
        f"- Verdict right: {verdicts} of {len(cells)}.\n"
        f"- Code right: {_share(codes, len(cells))}; of the wrong programs {_share(caused, len(wrong))}, of the "
        f"look-alikes {_share(silent, len(alike))}.\n"
        f"- Line right: {_share(lines, len(asked))} that have one."
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part / whole:.1f} %)" if whole else "")


def page(rows: dict[str, str]) -> str:
    """The whole page from its rows."""
    parts = ["# Gallery", INTRODUCTION]
    for framework in FRAMEWORKS:
        mine = [rows[name] for name in sorted(rows) if name.startswith(f"{framework}/")]
        parts += [f"## {TITLES[framework]}", "\n".join([HEAD, *mine])]
    misses = [f"- `{p.name}`: {p.misses}" for p in programs() if p.misses]
    if misses:
        parts += ["## Misses", "\n".join(misses)]
    return "\n\n".join([*parts, "## In numbers", summary(rows)]) + "\n"


def main() -> int:
    """Run the programs; print or write the table."""
    parser = argparse.ArgumentParser(description="Run the gallery.")
    parser.add_argument("--write", action="store_true", help="write docs/gallery/index.md")
    parser.add_argument("--frameworks", default=",".join(FRAMEWORKS), help="run the programs of these only")
    parser.add_argument("--reports", action="store_true", help="print the whole reports, too")
    parser.add_argument("names", nargs="*", help="run these only, for example torch/detached_state")
    arguments = parser.parse_args()
    chosen = [p for p in programs(tuple(arguments.frameworks.split(","))) if p.name in (arguments.names or [p.name])]
    known = {program.name for program in programs()}
    rows = {name: row for name, row in written().items() if name in known} if arguments.write else {}
    failed = 0
    for program in chosen:
        started = time.perf_counter()
        outcome = run(program)
        rows[program.name] = outcome.row
        failed += outcome.right == bool(program.misses)
        seconds = time.perf_counter() - started
        said = f"{outcome.report.verdict} {outcome.code} {sorted(outcome.lines)}"
        sys.stdout.write(f"{'ok  ' if outcome.right else 'MISS'} {seconds:5.1f} s  {program.name}: {said}\n")
        if arguments.reports or outcome.right == bool(program.misses):
            sys.stdout.write(f"{outcome.report}\n")
    if arguments.write:
        INDEX.write_text(page(rows), encoding="utf-8")
    sys.stdout.write(f"\n{HEAD}\n{chr(10).join(rows.values())}\n\n{summary(rows)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
