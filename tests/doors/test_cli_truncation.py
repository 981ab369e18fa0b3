"""`gradaudit truncation`: what it loads, prints, saves, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys

import click.testing
import pytest

from gradaudit.cli.main import cli

PROGRAM = """
import helper_of_the_user
from gradaudit.backends import registry
from gradaudit.recurrent import RecurrentSpec, SequenceData, none
import numpy as np

def make(R=0.8):
    spec = RecurrentSpec(n_features=1, n_classes=2, activation="identity", outputs="last")
    weights = {"W": np.array([[0.5, -0.3]]), "R": R * np.eye(2), "b": np.zeros(2)}
    data = SequenceData(features=np.ones((1, 60, 1)), labels=np.zeros((1, 60), int))
    return registry.get("numpy").recurrent_model(spec, weights, data, none())

model = make()
holder = type("Holder", (), {"model": model})
number = 3
class Layer:
    def __call__(self, x): raise ZeroDivisionError("called without need")
layer = Layer()
def needs_arguments(x): return model
def broken(): raise ZeroDivisionError("the user's own")
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "helper_of_the_user.py").write_text("")
    path = tmp_path / "program_of_the_user.py"
    path.write_text(PROGRAM)
    yield path
    for name in ("program_of_the_user", "helper_of_the_user"):
        sys.modules.pop(name, None)


def run(*arguments):
    return click.testing.CliRunner().invoke(cli, ["truncation", *map(str, arguments)])


def test_a_function_of_a_file(program, tmp_path):
    result = run(f"{program}:make", "--kind", "window", "--json", tmp_path / "bias.json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    data = json.loads((tmp_path / "bias.json").read_text())
    (curve,) = data["curves"]
    assert curve["kind"] == "window"
    assert f"window({curve['k']}): bias " in result.stdout
    assert f"saved to {tmp_path / 'bias.json'}" in result.stdout


def test_objects_of_a_file_or_module(program, monkeypatch):
    shown = [run(f"{program}:{name}", "--delta", "0.3").stdout for name in ("model", "holder.model")]
    monkeypatch.chdir(program.parent)
    sys.modules.pop("program_of_the_user")
    shown.append(run("program_of_the_user:make", "--delta", "0.3").stdout)
    answers = [[line for line in text.splitlines() if ": bias " in line][1:] for text in shown]
    assert answers[0] == answers[1] == answers[2]
    assert [line.split("(")[0] for line in answers[0]] == ["window", "chunks", "tail"]


def test_too_short_a_horizon_exits_with_three(program):
    result = run(f"{program}:model", "--kind", "window", "--horizon", 4, "--delta", 0.01)
    assert result.exit_code == 3
    assert "the horizon of 4 steps is too short" in result.stdout
    result = run(f"{program}:model", "--kind", "window", "--horizon", 4, "--no-full")
    assert result.exit_code == 3
    assert "a bound" in result.stdout


def test_a_figure(program, tmp_path):
    result = run(f"{program}:model", "--plot", tmp_path / "bias.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "bias.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["model"], "'model' names no object (in MODEL)\n\nHint: write module:object"),
        (["no_such_file.py:model"], "there is no file no_such_file.py"),
        (["no_such_module:model"], "there is no module 'no_such_module'"),
        (["{}:no_such_name"], "there is no 'no_such_name' in {}"),
        (["{}:layer"], "a Layer has no truncation of its own that could be changed"),
        (["{}:needs_arguments"], "a function has no truncation of its own that could be changed"),
        (["{}:model", "--plot", "bias.xyz"], "cannot save a plot to bias.xyz"),
        (["{}:model", "--plot", "no_such_folder/bias.png"], "there is no folder no_such_folder"),
        (["{}:model", "--json", "no_such_folder/bias.json"], "there is no folder no_such_folder"),
        (["{}:model", "--steps", "10"], "n_steps is 10, and the model has 60 steps"),
        (["{}:number"], "a int has no truncation of its own that could be changed"),
        (["{}:model", "--kind", "detach"], "no bias curve of 'detach'"),
        (["{}:model", "--delta", "2"], "delta must be between 0 and 1, got 2.0"),
    ],
)
def test_usage_errors(program, arguments, text, monkeypatch):
    def measured(*_args, **_options):
        pytest.fail("measured before it was refused")

    if "--plot" in arguments or "--json" in arguments:
        # by the module that the command lives in: another test may have imported the package anew
        monkeypatch.setitem(cli.commands["truncation"].callback.__wrapped__.__globals__, "bias_curve", measured)
    result = run(*(argument.format(program) for argument in arguments))
    assert result.exit_code == 2
    assert text.format(program) in result.stderr
    assert "Traceback" not in result.output


def test_what_the_users_code_raises_passes_unchanged(program):
    with pytest.raises(ZeroDivisionError, match="the user's own"):
        cli(["truncation", f"{program}:broken"], standalone_mode=False)
    (program.parent / "helper_of_the_user.py").write_text("import no_such_module_either")
    sys.modules.pop("helper_of_the_user")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        cli(["truncation", f"{program}:model"], standalone_mode=False)


def test_in_a_process_of_its_own(program):
    command = [sys.executable, "-m", "gradaudit", "truncation", f"{program.name}:make", "--kind", "chunks"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=program.parent)
    assert done.stdout.startswith("program_of_the_user.py:make: bias of truncated gradients over 60 steps")
    assert done.stderr == ""
