"""The test suite's own promise: a required backend that is missing or unexercised makes the run red."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def run(tmp_path, backends, body, *arguments):
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "test_it.py").write_text(body)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .\n")
    environment = {**os.environ, "GRADAUDIT_TEST_BACKENDS": backends}
    for name in [name for name in environment if name.startswith(("COV_", "COVERAGE"))]:
        del environment[name]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_missing_backend_ends_the_run(tmp_path):
    done = run(tmp_path, "numpy,theano", "def test_it(backend): pass")
    assert done.returncode == 4
    assert "GRADAUDIT_TEST_BACKENDS requires 'theano', which cannot be used: unknown backend 'theano'" in done.stderr


def test_an_unexercised_backend_is_red(tmp_path):
    done = run(tmp_path, "numpy", "def test_it(): pass")
    assert done.returncode == 1
    assert "ERROR: no passing test exercised the required backend 'numpy'" in done.stdout


def test_an_exercised_backend_is_green_and_named(tmp_path):
    done = run(tmp_path, "numpy", "def test_it(backend): assert backend.name == 'numpy'")
    assert done.returncode == 0
    assert "1 passed" in done.stdout


def test_no_backend_runs_what_needs_none(tmp_path):
    done = run(tmp_path, "", "def test_it(backend): raise AssertionError\ndef test_other(): pass")
    assert done.returncode == 0
    assert "1 passed" in done.stdout
