"""The command line: output, exit codes, JSON."""

from __future__ import annotations

import subprocess
import sys

import click.testing
import pytest

import gradaudit.__main__
from gradaudit import Verdict, load_report
from gradaudit.backends import registry
from gradaudit.cli.main import cli
from gradaudit.cli.output import progress
from gradaudit.diagnose.table import RULES

SMALL = ["demo", "--sequences", "4", "--steps", "200"]


def run(*arguments):
    return click.testing.CliRunner().invoke(cli, list(arguments))


def test_the_demo_shows_the_original_table_the_finding_and_the_cure(backend, tmp_path):
    result = run(*SMALL, "--backend", backend.name, "--json", str(tmp_path / "demo.json"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    losses = {line.split()[1]: line.split()[2] for line in lines if line.startswith("  loss ")}
    assert losses["FF"] == losses["REC"]
    header = next(i for i, line in enumerate(lines) if "FF finite" in line)
    assert lines[header].split() == ["FF", "finite", "FF", "analytic", "REC", "finite", "REC", "analytic"]
    rows = [line.rsplit(maxsplit=4) for line in lines[header + 1 : header + 7]]
    assert [row[0].strip() for row in rows] == ["W[0, 0]", "W[0, 1]", "W[1, 0]", "W[1, 1]", "b[0]", "b[1]"]
    for _, *numbers in rows:
        ff_finite, ff_analytic, rec_finite, rec_analytic = map(float, numbers)
        assert ff_finite == pytest.approx(ff_analytic, abs=2e-4)
        assert ff_finite == pytest.approx(rec_finite, abs=2e-4)
        assert abs(rec_analytic) < 0.2 * abs(rec_finite)
    assert "GA102  truncated in time, tail(1), as declared" in result.stdout
    assert "times too small (ratio " in result.stdout
    assert "Lift the truncation, and the gradient is right" in result.stdout
    report = load_report(tmp_path / "demo.json")
    assert [part.verdict for part in report.parts] == [Verdict.AGREE, Verdict.DISAGREE, Verdict.AGREE]
    assert {part.environment["backend"] for part in report.parts} == {backend.name}
    assert result.stderr == ""  # no progress bar when piped


@pytest.mark.parametrize("truncation", ["window:2", "chunks:3", "tbptt:2:3", "randomised:0.5"])
def test_zero_recurrent_weights_leave_other_truncations_nothing_to_cut(truncation):
    result = run(*SMALL, "--truncation", truncation, "--dtype", "float64")
    assert result.exit_code == 0
    assert "has nothing to cut. All gradients are right." in result.stdout


def test_the_demo_without_truncation():
    result = run(*SMALL, "--truncation", "none", "--dtype", "float64")
    assert result.exit_code == 0
    assert "What is going on: nothing. All gradients are right." in result.stdout


def test_the_demo_with_larger_nets_shows_tensors_instead_of_entries():
    result = run(*SMALL, "--features", "6", "--classes", "5")
    assert result.exit_code == 0, result.output
    assert "|W| along one direction" in result.stdout


def test_a_case_that_is_not_reproduced_exits_with_one(monkeypatch):
    from gradaudit.cli import demo

    monkeypatch.setattr(demo, "_reproduced", lambda case, audits: False)
    assert run(*SMALL).exit_code == 1


def test_all_installed_backends(monkeypatch):
    monkeypatch.setattr(registry, "installed_version", {"numpy": "2"}.get)
    result = run(*SMALL, "--backend", "all")
    assert result.exit_code == 0
    assert "jax is not installed: pip install 'gradaudit[jax]'" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--backend", "theano"], 2, "error: unknown backend 'theano'\n\nHint: one of numpy, torch, jax, tensorflow"),
        (["--truncation", "tail:0"], 2, "error: truncation tail needs a whole number of steps k >= 1, got k = 0"),
        (["--truncation", "window:2", "--blind"], 2, "is truncated as Theano does it, not window(2)"),
        (["--steps", "0"], 2, "error: n_steps must be at least 1, got 0"),
        (["--dtype", "float16"], 2, "'float16' is not one of 'float32', 'float64'"),
        (["--nonsense"], 2, "No such option"),
    ],
)
def test_usage_errors(arguments, code, text):
    result = run("demo", *arguments)
    assert result.exit_code == code
    assert text in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_backend_exits_with_four(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    result = run("demo", "--backend", "torch")
    assert result.exit_code == 4
    assert "error: the backend 'torch' needs torch, which is not installed\n\nHint: pip install 'gradaudit[torch]'" in (
        result.stderr
    )


def test_backends():
    result = run("backends")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["backend", *registry.names()]


def test_explain():
    listed = run("explain").stdout
    for rule in RULES:
        assert f"{rule.code}  {rule.title}" in listed
        assert run("explain", rule.code.lower()).stdout.startswith(f"# {rule.code}: ")
    unknown = run("explain", "GA000")
    assert unknown.exit_code == 2
    assert "error: unknown code 'GA000' (in explain)\n\nHint: one of GA101, " in unknown.stderr


def test_python_m_gradaudit():
    done = subprocess.run([sys.executable, "-m", "gradaudit", "--version"], capture_output=True, text=True, check=True)
    assert "gradaudit, version " in done.stdout


def test_without_the_extra_the_remedy_is_said(monkeypatch, capsys):
    for name in [m for m in sys.modules if m.startswith("gradaudit.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as stopped:
        gradaudit.__main__.main()
    assert stopped.value.code == 2
    assert "the command line needs click, which is not installed\n\nHint: pip install 'gradaudit[cli]'" in (
        capsys.readouterr().err
    )


def test_progress_draws_nothing_where_there_is_no_terminal(capsys):
    with progress("auditing") as advance:
        advance("auditing", 3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
