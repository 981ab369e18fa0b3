"""Which backends a run covers.

``GRADAUDIT_TEST_BACKENDS=torch,jax`` (tox sets it) makes those backends *required*: one that is missing or broken ends
the run with exit code 4, one that no passing test has exercised makes it red. Unset: whatever is installed is tested,
and the header says what is NOT TESTED.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from gradaudit.backends import registry

_passed: Counter[str] = Counter()

# by default PyTensor compiles by Numba, and the steps of loops by C: seconds a function
os.environ.setdefault("PYTENSOR_FLAGS", "mode=FAST_COMPILE,cxx=")


def required() -> list[str] | None:
    text = os.environ.get("GRADAUDIT_TEST_BACKENDS")
    return None if text is None else [name for name in text.replace(" ", "").split(",") if name]


def tested() -> list[str]:
    asked = required()
    return [n for n in registry.names() if registry.installed_version(n)] if asked is None else asked


#: One compares all frameworks, the other imports its own; the header says which are not tested.
collect_ignore = [
    *([] if set(registry.names()) <= set(tested()) else ["backends/test_ports.py"]),
    *([] if "pytensor" in tested() else ["backends/test_pytensor.py"]),
]


def pytest_configure(config):
    for name in required() or []:
        try:
            registry.get(name)
        except Exception as error:
            msg = f"GRADAUDIT_TEST_BACKENDS requires {name!r}, which cannot be used: {error}"
            raise pytest.UsageError(msg) from error


def pytest_report_header(config):
    missing = [name for name in registry.names() if name not in tested()]
    return f"backends: {', '.join(tested()) or 'none'}; NOT TESTED: {', '.join(missing) or 'none'}"


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        # an empty set would be an error; in the core environment these items are taken out below
        metafunc.parametrize("backend", tested() or [None], indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request):
    return registry.get(request.param)


def pytest_collection_modifyitems(items):
    # no backend asked for (the core environment): the suite over backends is not part of this run
    items[:] = [i for i in items if not ("backend" in getattr(i, "fixturenames", ()) and not tested())]


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        _passed.update(n for n in tested() if f"[{n}" in report.nodeid or f"-{n}" in report.nodeid)


def pytest_sessionfinish(session, exitstatus):
    config = session.config
    selected = config.option.keyword or config.option.collectonly or config.args_source is pytest.Config.ArgsSource.ARGS
    whole_run = session.testscollected and not selected
    unexercised = [name for name in required() or [] if not _passed[name]]
    if whole_run and unexercised and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        config.stash[UNEXERCISED] = unexercised


UNEXERCISED = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter, config):
    for name in config.stash.get(UNEXERCISED, []):
        terminalreporter.line(f"ERROR: no passing test exercised the required backend {name!r}", red=True)
