"""`import gradaudit` is light: no framework, no command line, under 0.3 s; with a control that the check can fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "jax", "tensorflow", "pytensor", "scipy", "click", "rich", "pytest")
PROGRAM = """
import json, sys, time
import numpy
started = time.perf_counter()
{body}
seconds = time.perf_counter() - started
print(json.dumps([seconds, sorted(set(sys.modules) & set({heavy!r}))]))
"""


def imported_by(body):
    program = PROGRAM.format(body=body, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout)
    return seconds, modules


def test_import_loads_no_framework_and_is_quick():
    attempts = [
        imported_by("import gradaudit; gradaudit.audit, gradaudit.load_report, gradaudit.tail") for _ in range(3)
    ]
    assert all(modules == [] for _, modules in attempts)
    assert min(seconds for seconds, _ in attempts) < 0.3


def test_the_registry_and_the_numpy_backend_load_no_framework():
    body = """
from gradaudit.backends import registry
for name in registry.names(): registry.installed_version(name)
registry.get("numpy")
import gradaudit.testing.scenarios
"""
    assert imported_by(body)[1] == []


def test_the_check_can_fail():
    assert imported_by("import pytest")[1] == ["pytest"]


def test_a_backend_loads_its_framework_and_no_other(backend):
    if backend.name == "numpy":
        assert imported_by("import gradaudit.backends.numpy")[1] == []
        return
    modules = imported_by(f"from gradaudit.backends import registry; registry.get({backend.name!r})")[1]
    assert backend.name in modules
    # JAX and PyTensor themselves need SciPy; Keras imports rich, and TensorFlow imports JAX where it is installed
    brought = {"jax": {"scipy"}, "tensorflow": {"scipy", "rich", "jax"}, "pytensor": {"scipy"}}
    assert set(modules) <= {backend.name} | brought.get(backend.name, set())


@pytest.mark.parametrize("name", ["no_such_name", "Auditor"])
def test_unknown_names_are_refused(name):
    import gradaudit

    with pytest.raises(AttributeError, match=f"module 'gradaudit' has no attribute '{name}'"):
        getattr(gradaudit, name)


def test_every_public_name_loads():
    import gradaudit

    assert set(gradaudit.__all__) <= set(dir(gradaudit))
    for name in gradaudit.__all__:
        assert getattr(gradaudit, name) is not None
