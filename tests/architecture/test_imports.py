"""`import gradaudit` is light: no framework, no command line, one module; with a control that the check can fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "jax", "tensorflow", "pytensor", "scipy", "click", "rich", "pytest")
PROGRAM = """
import json, sys
import numpy
{body}
own = [name for name in sys.modules if name.partition(".")[0] == "gradaudit"]
print(json.dumps([len(own), sorted(set(sys.modules) & set({heavy!r}))]))
"""


def imported_by(body):
    program = PROGRAM.format(body=body, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    n_own, modules = json.loads(done.stdout)
    return n_own, modules


def test_import_loads_nothing_but_itself():
    assert imported_by("import gradaudit") == (1, [])


def test_the_public_names_load_no_framework():
    n_own, modules = imported_by("import gradaudit; gradaudit.audit, gradaudit.load_report, gradaudit.tail")
    assert modules == []
    assert n_own > 1


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
