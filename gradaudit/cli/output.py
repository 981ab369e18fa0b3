"""What the commands print, apart from reports: progress on a terminal, the table of backends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gradaudit.backends.registry import BackendSpec, installed_version
from gradaudit.render.to_text import table

__all__ = ["Advance", "backends_table", "in_a_folder", "progress"]

#: (what is being done, forward passes so far) -> None
Advance = Callable[[str, int], None]


def in_a_folder(_: click.Context, option: click.Parameter, path: str | None) -> str | None:
    """A path to write to, refused before the work if its folder does not exist."""
    if path is not None and not Path(path).absolute().parent.is_dir():
        msg = f"there is no folder {Path(path).parent}"
        raise click.BadParameter(msg, param=option)
    return path


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """A progress bar on standard error while it is a terminal; nothing when piped."""
    console = Console(file=sys.stderr)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} evaluations")
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(label, total=None)

        def advance(stage: str, evaluations: int) -> None:
            bar.update(task, description=stage, completed=evaluations)

        yield advance


def backends_table(specs: Sequence[BackendSpec]) -> list[str]:
    """One row a backend: installed version, oldest version supported, how to install it."""
    rows = [["backend", "installed", "supported", "install with"]]
    for spec in specs:
        version = installed_version(spec.name)
        oldest = ".".join(map(str, spec.minimum))
        install = "built in" if spec.name == "numpy" else f"pip install 'gradaudit[{spec.name}]'"
        rows.append([spec.name, version or "-", f">={oldest}", install])
    return table(rows)
