"""Seconds, peak memory and evaluations of the demo at full size, each backend in a process of its own.

    python benchmarks/seed_case.py [--backends numpy torch ...] [--truncation tail:1]

Seconds are the audits' own (compilation included, imports not); memory is the peak above what the imports took.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from gradaudit.backends import registry


def measure(backend: str, truncation: str) -> dict:
    """Run the demo here and report."""
    from gradaudit.cli import demo
    from gradaudit.recurrent import Truncation

    registry.get(backend)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = demo.Case(
        n_sequences=10,
        n_steps=10_000,
        n_features=2,
        n_classes=2,
        dtype="float32",
        seed=0,
        truncation=Truncation.parse(truncation),
    )
    started = time.perf_counter()
    outcome = demo.run(backend, case, echo=lambda text: None, progress=lambda stage, n: None)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    parts = outcome.report.parts
    return {
        "backend": backend,
        "reproduced": outcome.reproduced,
        "seconds": round(seconds, 2),
        "seconds by net": [round(part.seconds, 2) for part in parts],
        "evaluations": [part.evaluations for part in parts],
        "gradients": [part.gradients for part in parts],
        "peak MiB above imports": round((peak - before) / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    installed = [name for name in registry.names() if registry.installed_version(name)]
    parser.add_argument("--backends", nargs="*", default=installed)
    parser.add_argument("--truncation", default="tail:1")
    parser.add_argument("--here", action="store_true", help="in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.backends[0], arguments.truncation)))
        return
    for backend in arguments.backends:
        command = [sys.executable, __file__, "--here", "--backends", backend, "--truncation", arguments.truncation]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


if __name__ == "__main__":
    main()
