"""Commands, options and exit codes: 0 agree, 1 disagree, 2 usage, 3 inconclusive, 4 backend missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from gradaudit.backends import registry
from gradaudit.cli import blind as blind_command
from gradaudit.cli import demo as demo_command
from gradaudit.cli import target
from gradaudit.cli.output import backends_table, in_a_folder, progress
from gradaudit.diagnose.table import page, rules
from gradaudit.errors import BackendNotInstalledError, BackendVersionError, GradauditError
from gradaudit.lens import bias_curve
from gradaudit.protocols import SupportsTruncation
from gradaudit.recurrent import Truncation
from gradaudit.render.to_plot import drawable
from gradaudit.render.to_text import table

__all__ = ["cli"]

P = ParamSpec("P")
R = TypeVar("R")
_USAGE, _INCONCLUSIVE, _BACKEND_MISSING = 2, 3, 4


def _errors_as_exit_codes(command: Callable[P, R]) -> Callable[P, R]:
    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except GradauditError as error:
            click.echo(f"error: {error}", err=True)
            missing = isinstance(error, BackendNotInstalledError | BackendVersionError)
            sys.exit(_BACKEND_MISSING if missing else _USAGE)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gradaudit")
def cli() -> None:
    """Is the analytic gradient the derivative of this loss, how far is it off, and why?"""
    # this process is ours: TensorFlow's start-up notices would only drown the report
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@cli.command()
@click.option(
    "--backend", default="numpy", show_default=True, help="numpy, torch, jax, tensorflow, pytensor, or all installed."
)
@click.option("--sequences", default=10, show_default=True, help="Number of sequences.")
@click.option("--steps", type=int, help="Steps in each sequence.  [default: 10000; 1000 with --blind]")
@click.option("--features", default=2, show_default=True, help="Dimension of a feature vector.")
@click.option("--classes", default=2, show_default=True, help="Number of classes.")
@click.option(
    "--truncation",
    default="tail:1",
    show_default=True,
    help="Of the recurrent net: none, tail:K, window:K, chunks:K, tbptt:K1:K2 or randomised:P.",
)
@click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the weights, the data and the probes.")
@click.option("--blind", is_flag=True, help="Hand the recurrent net over as a black box, and find the cause.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True),
    callback=in_a_folder,
    help="Save all reports here.",
)
@_errors_as_exit_codes
def demo(
    backend: str,
    sequences: int,
    steps: int | None,
    features: int,
    classes: int,
    truncation: str,
    dtype: str,
    seed: int,
    blind: bool,  # noqa: FBT001  # a flag of the command line
    json_path: str | None,
) -> None:
    """The original case: one function, two networks, and a gradient ten thousand times too small.

    Exits with 0 when the case is reproduced: the feed-forward net agrees, the truncated recurrent net disagrees
    because of its truncation, and agrees with the truncation lifted. With --blind the recurrent net is a program of
    which nothing is declared; it is reproduced when the truncation, its k and the line of the cut are found.
    """
    case = demo_command.Case(
        n_sequences=sequences,
        n_steps=steps if steps is not None else 1_000 if blind else 10_000,
        n_features=features,
        n_classes=classes,
        dtype=dtype,
        seed=seed,
        truncation=Truncation.parse(truncation),
    )
    with progress("auditing") as advance:
        run = blind_command.run if blind else demo_command.run
        outcome = run(backend, case, echo=click.echo, progress=advance)
    if json_path is not None:
        outcome.report.save(json_path)
        click.echo(f"\nsaved to {json_path}")
    sys.exit(0 if outcome.reproduced else 1)


@cli.command()
@click.argument("model")
@click.option("--delta", default=0.1, show_default=True, help="The relative bias to stay below.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    help="window, chunks, tail or tbptt:K1, also several times.  [default: first three]",
)
@click.option("--horizon", default=256, show_default=True, help="The longest window that is tried.")
@click.option("--no-full", is_flag=True, help="Do without the full gradient: bounds, by a geometric series.")
@click.option("--steps", type=int, help="Number of steps T, if the model does not say it.")
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False), help="Draw it to this .png, .svg or .pdf.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, writable=True), callback=in_a_folder, help="Save it here."
)
@_errors_as_exit_codes
def truncation(
    model: str,
    delta: float,
    kinds: tuple[str, ...],
    horizon: int,
    no_full: bool,  # noqa: FBT001  # a flag of the command line
    steps: int | None,
    plot_path: str | None,
    json_path: str | None,
) -> None:
    """How biased truncated gradients of MODEL are, and the k to use.

    MODEL is module:object or path/to/file.py:name: a recurrent model that has with_truncation, or a function that
    returns one. Exits with 0 when there is such a k for every kind, and with 3 when the horizon was too short for one.
    """
    if plot_path is not None:
        drawable(Path(plot_path))
    found = target.load(model)
    if not isinstance(found, SupportsTruncation):
        found = target.made(found)
    chosen = {"kinds": kinds} if kinds else {}
    with progress("measuring") as advance:
        curve = bias_curve(
            found,
            delta=delta,
            horizon=horizon,
            full=not no_full,
            n_steps=steps,
            name=model,
            progress=advance,
            **chosen,
        )
    click.echo(str(curve))
    if json_path is not None:
        curve.save(json_path)
        click.echo(f"\nsaved to {json_path}")
    if plot_path is not None:
        curve.plot(plot_path)
        click.echo(f"\ndrawn to {plot_path}")
    sys.exit(0 if curve.answered else _INCONCLUSIVE)


@cli.command()
def backends() -> None:
    """What is installed."""
    click.echo("\n".join(backends_table(registry.BACKENDS)))


@cli.command()
@click.argument("code", required=False)
@_errors_as_exit_codes
def explain(code: str | None) -> None:
    """What a finding CODE means, a minimal program that has it, and how to mend it; without CODE, all codes."""
    if code is None:
        click.echo("\n".join(table([[rule.code, rule.title] for rule in sorted(rules(), key=lambda rule: rule.code)])))
    else:
        click.echo(page(code.upper()))
